"""The viewer's widgets, where they stand and what is drawn in them. What they do is in viewer.py, their HTML a template."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import ipywidgets as w
import pandas as pd
from PIL import Image, ImageOps

from mtlib.report import browse
from mtlib.report.text import escape_html, number, templates

HTML = templates(escape_html).get_template("viewer.html.j2").module  # macros, as functions that return HTML
THUMBNAIL = 264  # pixels: twice what is shown, for dense screens

N_SIMILAR, N_LABELS = 6, 8
GROW = w.Layout(flex="1 1 0", width="auto", min_width="0")
SPLITS = (("val: named from these", "val"), ("test: held out", "test"))
NAMED = "run note method judge sort descending search verdict min_density assessed count list split header tiles"
NAMED = f"{NAMED} where gallery upload preview".split()  # each has the CSS class mtv-<name>


class Controls:
    """Every widget of the viewer, as an attribute; `widget` is the whole."""

    def __init__(self, runs: list[tuple[str, Path]], run: Path):
        fill = w.Layout(width="auto")
        verdicts = [("any", ""), *((v.replace("_", " "), v) for v in browse.VERDICTS)]
        self.run = w.Dropdown(options=runs, value=run, description="run", layout=fill)
        self.method = w.Dropdown(options=["–"], description="method", layout=fill)
        self.judge = w.Dropdown(options=["–"], description="judge", layout=fill)
        self.sort = w.Dropdown(options=list(browse.SORTS), description="sort by", layout=GROW)
        self.descending = w.ToggleButton(value=True, description="↓", layout=w.Layout(width="38px"))
        self.search = w.Text(
            placeholder="words in the name", description="search", continuous_update=False, layout=fill
        )
        self.verdict = w.Dropdown(options=verdicts, description="verdict", layout=fill)
        self.min_density = w.BoundedFloatText(min=0.0, max=1.0, step=0.001, description="density ≥", layout=fill)
        self.assessed = w.Checkbox(description="assessed only (≥ 10 test images)", indent=False, layout=fill)
        self.list = w.Select(options=[], rows=24, layout=fill)
        self.split = w.ToggleButtons(options=SPLITS, value="val", style={"button_width": "190px"})
        self.where = w.ToggleButton(description="where does it fire?", layout=w.Layout(width="auto"))
        self.gallery = w.ToggleButtons(options=[], layout=fill)  # each button is an image
        self.note, self.count, self.header, self.tiles, self.preview = (w.HTML() for _ in range(5))
        self.pictures = w.HTML()
        self.upload = w.FileUpload(accept="image/*", description="an image of yours", layout=w.Layout(width="auto"))
        self.similar = [_feature_button("mtv-similar-feature") for _ in range(N_SIMILAR)]
        self.labels = [_feature_button("mtv-label") for _ in range(N_LABELS)]
        for name in NAMED:
            getattr(self, name).add_class(f"mtv-{name}")
        self.widget = self._layout()

    def _layout(self) -> w.Widget:
        sort = w.HBox([self.sort, self.descending], layout=w.Layout(flex="0 0 auto"))
        choose = [self.run, self.method, self.judge, sort, self.search, self.verdict, self.min_density, self.assessed]
        left = w.VBox([*choose, self.count, self.list]).add_class("mtv-side")
        image = w.VBox([self.upload, self.preview], layout=w.Layout(flex="0 0 200px"))
        labels = w.VBox(self.labels, layout=GROW)
        one = w.VBox([w.HTML(HTML.title("One image: click one above, or")), w.HBox([image, labels])], layout=GROW)
        similar = w.VBox([w.HTML(HTML.title("Similar features")), *self.similar], layout=w.Layout(flex="0 0 36%"))
        how = w.HBox([self.split, self.where])
        shown = [self.note, self.header, self.tiles, how, self.pictures, self.gallery, w.HBox([one, similar])]
        right = w.VBox(shown, layout=GROW)
        for part, name in (
            (left, "mtv-panel"),
            (right, "mtv-panel"),
            (similar, "mtv-buttons"),
            (labels, "mtv-buttons"),
        ):
            part.add_class(name)
        body = w.HBox([left, right], layout=w.Layout(align_items="flex-start", grid_gap="14px"))
        return w.VBox([w.HTML(HTML.style()), body.add_class("mtv-viewer")])


def _feature_button(css: str) -> w.Button:
    return w.Button(layout=w.Layout(width="100%", display="none")).add_class(css)  # of its own: each hides alone


def fill_buttons(buttons: Sequence[w.Button], contents: Sequence[tuple[int, str]]) -> None:
    """Let each button stand for a feature, given as its number and the text; those that are left over are hidden."""
    for button, content in zip_longest(buttons, contents):
        button.layout.display = "none" if content is None else ""
        button.feature, button.description = content or (None, "")
        button.tooltip = button.description


def fill_gallery(on: Controls, top: pd.DataFrame, pictures: Sequence[tuple[str, str]]) -> None:
    """The strongest images of a feature as buttons, each with its activation and label; none is chosen.

    Args: top: lines of top_images.parquet. pictures: of each its data URL and the word that stands for it.
    """
    labels = ["" if pd.isna(label) else ("plausible", "implausible")[label] for label in top["label"]]
    words = [
        f"{word} {number(a)} {label}" for (_, word), a, label in zip(pictures, top["activation"], labels, strict=True)
    ]
    on.gallery.options = list(zip(map(str.strip, words), map(int, top["row"]), strict=True))
    on.gallery.tooltips, on.gallery.value = top["path"].tolist(), None
    on.pictures.value = HTML.gallery([url for url, _ in pictures], labels)


def data_url(image: Image.Image) -> str:
    """A square thumbnail as text that HTML and CSS take for a file; smaller images keep their pixels."""
    side, buffer = min(THUMBNAIL, max(image.size)), io.BytesIO()
    ImageOps.pad(image.convert("RGB"), (side, side), color="#f3f4f6").save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
