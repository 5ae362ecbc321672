"""The readable copies of an executed notebook: .ipynb and one self-contained .html.

Both are committed, so whatever changes from run to run or belongs to one machine is taken out: the
kernel's metadata, execution times, progress bars, memory addresses, and the paths of the repository and the user.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from PIL import Image

from mtlib.run.artifacts import visible, write_text

KEEP_METADATA = ("kernelspec", "language_info", "widgets")
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+it \[|\[\d+:\d+<|\d(it/s|s/it)")
SMALL_PNG, LARGE_PNG = 20_000, 200_000  # bytes
ADDRESS = re.compile(r"( at )0x[0-9a-f]{6,}")


def clean(executed: Path, root: Path, private: list[str]):
    """An executed notebook as a notebook node without times, machine paths and progress bars.

    Args: root: the repository. private: paths that parameters brought in; absolute ones are cut to their last part.
    """
    pairs = {str(root) + "/": "", str(root): "."}
    for path in sorted(private, key=len, reverse=True):
        if Path(path).is_absolute():
            pairs[path] = f".../{Path(path).name}"
    pairs[str(Path.home()) + "/"] = "~/"

    def hide(text: str) -> str:
        for path, shown in pairs.items():
            text = text.replace(path, shown)
        return ADDRESS.sub(r"\g<1>0x...", visible(text))

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in KEEP_METADATA}
    notebook.metadata.get("language_info", {}).pop("version", None)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i + 1}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
        cell.source = hide(cell.source)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if _clean_output(o, hide)]
    return notebook


def _clean_output(output, hide) -> bool:
    """Take out of one output what varies. Returns: whether anything is left."""
    if output.output_type == "stream":
        lines = (line.rsplit("\r", 1)[-1] for line in output.text.split("\n"))
        output.text = hide("\n".join(line for line in lines if not PROGRESS_BAR.search(line)))
        return bool(output.text.strip())
    if output.output_type in ("display_data", "execute_result"):
        size = output.metadata.get("image/png", {})  # and its text for who does not see it
        for kind, value in output.data.items():
            if kind.startswith("text/") and isinstance(value, str):
                output.data[kind] = hide(value)
        _shrink(output.data)
        output.metadata = {kind: size for kind in output.data if kind.startswith("image/") and size}
    if output.output_type == "error":
        output.evalue, output.traceback = hide(output.evalue), [hide(line) for line in output.traceback]
    return True


def _shrink(data) -> None:
    """Make a picture of the copy smaller (a report has 15 MB; the full one is in figures/).

    A chart keeps its lines as a PNG of 256 colours; a large sheet of photographs becomes a JPEG.
    """
    raw = base64.b64decode(data.get("image/png", ""))
    if len(raw) < SMALL_PNG:
        return
    picture = Image.open(io.BytesIO(raw)).convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    png, jpeg = io.BytesIO(), io.BytesIO()
    white.quantize(256, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    white.save(jpeg, "JPEG", quality=88)
    sizes = {"image/png": png.getvalue()} | ({"image/jpeg": jpeg.getvalue()} if len(raw) > LARGE_PNG else {})
    kind, small = min(sizes.items(), key=lambda item: len(item[1]))
    if len(small) < len(raw):
        del data["image/png"]
        data[kind] = base64.b64encode(small).decode()


def _slim_style(match: re.Match) -> str:
    """A style sheet without comments and without the icons of JupyterLab's buttons, which a page does not have."""
    text = re.sub(r"^\s*--jp-icon-[\w-]+: url\([^\n]*\);$", "", match[0], flags=re.M)
    return re.sub(r"\n\s*\n+", "\n", re.sub(r"/\*.*?\*/", "", text, flags=re.S))


def render(executed: Path, target: Path, root: Path, private: list[str]) -> None:
    """Write `target`.ipynb and `target`.html (images inside, no request to any host)."""
    notebook = clean(executed, root, private)
    hosts = dict.fromkeys(("require_js_url", "mathjax_url", "jquery_url", "mermaid_js_url"), "")
    exporter = HTMLExporter(template_name="lab", embed_images=True, exclude_anchor_links=True, **hosts)
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": executed.stem, "path": str(root)}})
    html = re.sub(
        r"<script[^>]*>(?:(?!</script>).)*?(?:mermaid|MathJax)(?:(?!</script>).)*</script>", "", html, flags=re.S
    )
    html = re.sub(r'<script src="">\s*</script>', "", html)
    html = re.sub(r"<style.*?</style>", _slim_style, html, flags=re.S)
    write_text(target.with_name(target.name + ".ipynb"), nbformat.writes(notebook) + "\n")
    write_text(target.with_name(target.name + ".html"), "\n".join(line.rstrip() for line in html.splitlines()) + "\n")
