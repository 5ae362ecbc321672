"""The viewer's widgets, where they stand and what is drawn in them. What they do is in viewer.py, their HTML a template."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import zip_longest

import ipywidgets as w
import numpy as np
import pandas as pd
from PIL import Image

from mtlib.report import browse
from mtlib.report.text import escape_html, number, templates

HTML = templates(escape_html).get_template("viewer.html.j2").module  # macros, as functions that return HTML
THUMBNAIL = 264  # pixels: twice what is shown, for dense screens

N_SIMILAR, N_LABELS = 6, 8
TITLES = ("Activations", "Similar features", "Label an image of your own")
GROW = w.Layout(flex="1 1 0", width="auto", min_width="0")
SPLITS = (("val: named from these", "val"), ("test: held out", "test"))
NAMED = "method judge sort descending search verdict min_density assessed count list previous next split header tiles"
NAMED = f"{NAMED} gallery histogram upload upload_preview".split()  # each has the CSS class mtv-<name>


class Controls:
    """Every widget of the viewer, as an attribute; `widget` is the whole."""

    def __init__(self, methods: list[str], method: str, run: str):
        fill, half = w.Layout(width="auto"), w.Layout(width="49%")
        verdicts = [("any", ""), *((v.replace("_", " "), v) for v in browse.VERDICTS)]
        self.method = w.Dropdown(options=methods, value=method, description="method", layout=fill)
        self.judge = w.Dropdown(options=["–"], description="judge", layout=fill)
        self.sort = w.Dropdown(options=list(browse.SORTS), description="sort by", layout=GROW)
        self.descending = w.ToggleButton(value=True, icon="arrow-down", layout=w.Layout(width="38px"))
        self.search = w.Text(
            placeholder="words in the name", description="search", continuous_update=False, layout=fill
        )
        self.verdict = w.Dropdown(options=verdicts, description="verdict", layout=fill)
        self.min_density = w.BoundedFloatText(min=0.0, max=1.0, step=0.001, description="density ≥", layout=fill)
        self.assessed = w.Checkbox(description="assessed only (≥ 10 test images)", indent=False, layout=fill)
        self.list = w.Select(options=[], rows=24, layout=fill)
        self.previous = w.Button(description="previous", icon="chevron-left", layout=half)
        self.next = w.Button(description="next", icon="chevron-right", layout=half)
        self.split = w.ToggleButtons(options=SPLITS, value="val", style={"button_width": "170px"})
        self.count, self.header, self.tiles = w.HTML(), w.HTML(), w.HTML()
        self.gallery, self.histogram, self.upload_preview = w.HTML(), w.HTML(), w.HTML()
        self.upload = w.FileUpload(accept="image/*", description="choose an image", layout=w.Layout(width="180px"))
        self.similar = [_feature_button("mtv-similar-feature") for _ in range(N_SIMILAR)]
        self.labels = [_feature_button("mtv-label") for _ in range(N_LABELS)]
        for name in NAMED:
            getattr(self, name).add_class(f"mtv-{name.replace('_', '-')}")
        self.widget = self._layout(run)

    def _layout(self, run: str) -> w.Widget:
        sort, move = w.HBox([self.sort, self.descending]), w.HBox([self.previous, self.next])
        move.layout.justify_content = "space-between"
        choose = [self.method, self.judge, sort, self.search, self.verdict, self.min_density, self.assessed]
        left = w.VBox([*choose, self.count, self.list, move], layout=w.Layout(width="370px", flex="0 0 370px"))
        title = {text: w.HTML(HTML.title(text)) for text in TITLES}
        activations = w.VBox([title["Activations"], self.histogram], layout=w.Layout(width="52%"))
        similar = w.VBox([title["Similar features"], *self.similar], layout=GROW)
        chosen = w.VBox([self.upload, self.upload_preview], layout=w.Layout(flex="0 0 210px"))
        found = w.VBox(self.labels, layout=GROW)
        shown = [self.header, self.tiles, self.split, self.gallery, w.HBox([activations, similar])]
        right = w.VBox([*shown, title["Label an image of your own"], w.HBox([chosen, found])], layout=GROW)
        for part, name in ((left, "mtv-panel"), (right, "mtv-panel"), (similar, "mtv-buttons"), (found, "mtv-buttons")):
            part.add_class(name)
        body = w.HBox([left, right], layout=w.Layout(align_items="flex-start", grid_gap="14px"))
        return w.VBox([w.HTML(HTML.head(run)), body.add_class("mtv-viewer")])


def _feature_button(css: str) -> w.Button:
    return w.Button(layout=w.Layout(width="100%", display="none")).add_class(css)  # of its own: each hides alone


def fill_buttons(buttons: Sequence[w.Button], contents: Sequence[tuple[int, str]]) -> None:
    """Let each button stand for a feature, given as its number and the text; those that are left over are hidden."""
    for button, content in zip_longest(buttons, contents):
        button.layout.display = "none" if content is None else ""
        button.feature, button.description = content or (None, "")
        button.tooltip = button.description


# ---- pictures of one feature, as HTML


def png(image: Image.Image) -> bytes:
    """PNG bytes of a thumbnail; smaller images keep their pixels."""
    copy = image.convert("RGB")
    copy.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    copy.save(buffer, "PNG")
    return buffer.getvalue()


def gallery(top: pd.DataFrame, images: Sequence[bytes | str | None]) -> str:
    """The strongest images of a feature with their activation and label.

    Args: top: lines of top_images.parquet. images: of each PNG bytes, the word that it stands for, or None: unreadable.
    """
    lines = top.assign(label=top["label"].fillna(-1).astype(int)).to_dict("records")
    data = [base64.b64encode(image).decode() if isinstance(image, bytes) else "" for image in images]
    words = ["cannot be read" if image is None else image for image in images]
    return HTML.gallery(list(zip(lines, data, words, strict=True)))


def histogram(edges: np.ndarray, counts: np.ndarray, marks: Sequence[float] = ()) -> str:
    """A feature's activations (where it fires) as bars, square-root height.

    Args: edges: (bins + 1,). counts: (bins,) rows. marks: activations to mark, but those beyond the last bar.
    """
    if counts.sum() == 0:
        return HTML.message("It never fires here.")
    width, height, last = 420, 110, int(np.flatnonzero(counts)[-1]) + 1
    step, tops = width / last, np.sqrt(counts[:last] / counts.max()) * height  # (last,)
    said = [f"{number(edges[i])} to {number(edges[i + 1])}: {int(counts[i])} rows" for i in range(last)]
    bars = [(i * step, tall, said[i]) for i, tall in enumerate(tops)]
    ticks = [m / edges[last] * width for m in marks if m <= edges[last]]
    return HTML.histogram(bars, ticks, float(edges[last]), int(counts.sum()), width, height, step)
