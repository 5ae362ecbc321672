"""`./run_all.sh keep <run>`: what is worth keeping of a report, small enough for git, in reports/kept/<run>/.

Its pages, the pictures that they show, and tables up to 50 kB; of the demo also the executed notebooks. Links to what is
not kept become plain text.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from mtlib.run.params import ParamsError
from mtlib.run.profiles import KEPT, Places

TABLE_BYTES, REPORT_BYTES, DEMO_BYTES, ALL_BYTES = 50_000, 1_000_000, 5_000_000, 12_000_000
PICTURE = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src="([^"]+)"')
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def keep(run: str, places: Places) -> Path:
    """Copy a run's report into reports/kept/<run>/, replacing what was kept of it before.

    Returns: the folder.
    Raises: ParamsError when there is no such report, or when what would be kept is too large.
    """
    report, target = places.root / "reports" / run, places.root / "reports" / KEPT / run
    pages = sorted(report.glob("*.md"))
    if not pages:
        raise ParamsError(f"keep {run}: reports/{run}/ holds no page; run the profile first")
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    shown = {a or b for text in texts.values() for a, b in PICTURE.findall(text)}
    files = {name for name in shown if (report / name).is_file()} | set(texts)
    files |= {f"tables/{p.name}" for p in (report / "tables").glob("*.csv") if p.stat().st_size <= TABLE_BYTES}
    files |= {f"notebooks/{p.name}" for p in (report / "notebooks").glob("*.ipynb") if run == "demo"}
    limit = DEMO_BYTES if run == "demo" else REPORT_BYTES
    size = sum((report / name).stat().st_size for name in files)
    if size > limit:
        largest = max(files, key=lambda name: (report / name).stat().st_size)
        raise ParamsError(f"keep {run}: {size:,} bytes, at most {limit:,} are kept; the largest is {largest}")
    shutil.rmtree(target, ignore_errors=True)
    for name in sorted(files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            (target / name).write_text(_without_dead_links(texts[name], files), encoding="utf-8")
        else:
            shutil.copyfile(report / name, target / name)
    return target


def _without_dead_links(text: str, files: set[str]) -> str:
    """Links to files of the report that are not kept, as plain text; others, also to pages elsewhere, as they are."""

    def linked(match: re.Match) -> str:
        path = match[2].split("#")[0]
        return match[0] if not path or "://" in path or path.startswith("..") or path in files else match[1]

    return LINK.sub(linked, text)


if __name__ == "__main__":
    try:
        for name in sys.argv[1:] or [""]:
            print(keep(name, Places()).relative_to(Places().root))
    except ParamsError as e:
        sys.exit(f"error: {e}")
