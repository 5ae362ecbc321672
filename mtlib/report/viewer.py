"""The feature viewer: choose a method, sort and filter its features, look at one, label an image of your own.

Reads a run's artifacts and writes nothing. What is shown is decided in browse.py, how it looks in cards.py; here are
only the widgets and what happens when they change.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd

from mtlib.embed.images import ImageRefused, decode, load_image
from mtlib.embed.store import open_run
from mtlib.report import browse, cards
from mtlib.report.reader import Reader
from mtlib.report.text import number, shorten
from mtlib.run.artifacts import ArtifactError

N_SIMILAR, N_LABELS = 6, 8
SPLIT_WORDS = (("val: named from these", "val"), ("test: held out", "test"))


class FeatureViewer:
    """Browse the features of a finished run. Put it last in a cell to see it.

    Args:
        run_dir: folder of the run, e.g. "runs/demo"; relative paths are taken from the repository root.
        method:  the method to start with; "" for the first one.
    Attributes: feature (the number shown, or None), features (numbers in the list, in order), widget (the whole).
    Raises: ArtifactError when the run has no features yet, or an artifact is damaged.
    """

    def __init__(self, run_dir: str | Path = "runs/demo", method: str = ""):
        self.reader = Reader.of_run(run_dir)
        methods = self.reader.methods()
        if not methods:
            raise ArtifactError(f"{run_dir}: no features yet; run the notebooks up to 05_features first")
        self.run_dir = Path(__file__).resolve().parents[2] / run_dir
        self.data = open_run(self.run_dir)
        self.feature: int | None = None
        self.features = np.array([], dtype=np.int64)
        self._thumbnail = lru_cache(maxsize=2000)(self._read_thumbnail)
        self._labelers: dict = {}
        self._quiet = False
        self._build(methods, method or methods[0])
        self._set_method()

    # ---- widgets

    def _build(self, methods: list[str], method: str) -> None:
        wide = w.Layout(width="auto")
        self.method = w.Dropdown(options=methods, value=method, description="method", layout=wide)
        self.judge = w.Dropdown(options=["–"], description="judge", layout=wide)
        self.sort = w.Dropdown(
            options=list(browse.SORTS), description="sort by", layout=w.Layout(flex="1 1 auto", width="auto")
        )
        self.descending = w.ToggleButton(
            value=True, icon="arrow-down", tooltip="highest first", layout=w.Layout(width="38px")
        )
        self.search = w.Text(
            placeholder="words in the name", description="search", continuous_update=False, layout=wide
        )
        self.verdict = w.Dropdown(
            options=[("any", ""), *((v.replace("_", " "), v) for v in browse.VERDICTS)],
            description="verdict",
            layout=wide,
        )
        self.min_density = w.BoundedFloatText(
            value=0.0, min=0.0, max=1.0, step=0.001, description="density ≥", layout=wide
        )
        self.assessed = w.Checkbox(
            value=False, description="assessed only (≥ 10 test images)", indent=False, layout=wide
        )
        self.count = w.HTML()
        self.list = w.Select(options=[], rows=24, layout=wide)
        self.previous = w.Button(description="previous", icon="chevron-left", layout=w.Layout(width="48%"))
        self.next = w.Button(description="next", icon="chevron-right", layout=w.Layout(width="48%"))
        self.split = w.ToggleButtons(options=SPLIT_WORDS, value="val", style={"button_width": "170px"})
        self.header, self.tiles, self.gallery, self.histogram = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.similar = [w.Button(layout=w.Layout(width="100%")) for _ in range(N_SIMILAR)]
        self.upload = w.FileUpload(
            accept="image/*", multiple=False, description="choose an image", layout=w.Layout(width="180px")
        )
        self.upload_preview = w.HTML()
        self.labels = [w.Button(layout=w.Layout(width="100%")) for _ in range(N_LABELS)]
        names = (
            "method",
            "judge",
            "sort",
            "search",
            "verdict",
            "list",
            "previous",
            "next",
            "gallery",
            "header",
            "upload",
        )
        for name in names + ("count", "split", "histogram", "tiles", "assessed", "descending"):
            getattr(self, name).add_class(f"mtv-{name}")
        for button in self.similar:
            button.add_class("mtv-similar-feature")
            button.on_click(lambda b: self.show(b.feature))
        for button in self.labels:
            button.add_class("mtv-label")
            button.on_click(lambda b: self.show(b.feature))
        self._observe()
        self.widget = self._layout()

    def _layout(self) -> w.Widget:
        head = w.HTML(
            f"{cards.STYLE}<div class='mtv'><div class='over'>run {cards.escape_html(self.reader.name)}</div></div>"
        )
        sort = w.HBox([self.sort, self.descending])
        choose = [self.method, self.judge, sort, self.search, self.verdict, self.min_density]
        left = w.VBox(
            [*choose, self.assessed, self.count, self.list, w.HBox([self.previous, self.next])],
            layout=w.Layout(width="370px", flex="0 0 370px"),
        )
        left.add_class("mtv-panel")
        self.list.add_class("mtv-list")
        similar = w.VBox([_title("Similar features"), *self.similar], layout=w.Layout(width="46%"))
        similar.add_class("mtv-similar")
        lower = w.HBox([w.VBox([_title("Activations"), self.histogram], layout=w.Layout(width="52%")), similar])
        found = w.VBox(self.labels, layout=w.Layout(flex="1 1 auto"))
        found.add_class("mtv-similar")
        label = w.VBox([self.upload, self.upload_preview], layout=w.Layout(width="200px"))
        right = w.VBox(
            [
                self.header,
                self.tiles,
                self.split,
                self.gallery,
                lower,
                _title("Label an image of your own"),
                w.HBox([label, found]),
            ],
            layout=w.Layout(flex="1 1 auto", min_width="0", width="auto"),
        )
        right.add_class("mtv-panel")
        for button in self.labels:
            button.layout.display = "none"
        body = w.HBox([left, right], layout=w.Layout(align_items="flex-start", grid_gap="14px"))
        body.add_class("mtv-viewer")
        return w.VBox([head, body])

    def _observe(self) -> None:
        self.method.observe(lambda _: self._set_method(), "value")
        self.judge.observe(lambda _: self._set_judge(), "value")
        for control in (self.sort, self.descending):
            control.observe(lambda _: self._refresh(stay=False), "value")
        for control in (self.search, self.verdict, self.min_density, self.assessed):
            control.observe(lambda _: self._refresh(), "value")
        self.list.observe(lambda change: self._chosen(change["new"]), "value")
        self.split.observe(lambda _: self._show_images(), "value")
        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.upload.observe(lambda _: self._uploaded(), "value")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    # ---- what happens

    def _set_method(self) -> None:
        method = self.method.value
        folder = self.reader.folders["05_features"] / "features" / method
        self.verdicts, self.top = self.reader.verdicts(method), self.reader.top_images(method)
        with np.load(folder / "histograms.npz", allow_pickle=False) as saved:
            self.edges, self.counts = saved["edges"], saved["counts"]
        self.neighbours = pd.read_parquet(folder / "similar.parquet")
        self._quiet = True
        self.judge.options = browse.judges_of(self.reader, self.verdicts) or ["–"]
        if self.feature is None and self.reader.features(method)["error_ratio"].notna().any():
            self.sort.value = "error ratio"
        self._quiet = False
        self.feature = None
        self._set_judge()

    def _set_judge(self) -> None:
        if self._quiet:
            return
        judge = "" if self.judge.value == "–" else self.judge.value
        self.table = browse.feature_table(self.reader, self.method.value, judge)
        self._refresh()

    def query(self) -> browse.Query:
        """The choice that the controls stand for."""
        return browse.Query(
            sort=self.sort.value,
            descending=self.descending.value,
            min_density=self.min_density.value,
            verdict=self.verdict.value,
            assessed=self.assessed.value,
            text=self.search.value,
        )

    def _refresh(self, stay: bool = True) -> None:
        if self._quiet:
            return
        query = self.query()
        self.descending.tooltip = "highest first" if query.descending else "lowest first"
        self.descending.icon = "arrow-down" if query.descending else "arrow-up"
        self.features = browse.select(self.table, query)
        chosen = self.table.loc[self.features]
        errors = int((chosen["verdict"] == "error").sum())
        text = f"{len(chosen):,} of {len(self.table):,} features, {errors:,} with the verdict error"
        self.count.value = f'<div class="mtv"><span class="muted">{text}</span></div>'
        lines = [browse.list_line(record, query.sort) for _, record in chosen.iterrows()]
        self._quiet = True
        self.list.options = list(zip(lines, map(int, self.features), strict=True))
        self._quiet = False
        self.show(self.feature if stay and self.feature in self.features else browse.step(self.features, None, 0))

    def _chosen(self, feature: int | None) -> None:
        if not self._quiet and feature is not None:
            self.show(feature)

    def step(self, by: int) -> None:
        """Show the feature `by` places further down the list."""
        self.show(browse.step(self.features, self.feature, by))

    def show(self, feature: int | None) -> None:
        """Show a feature by its number, also one that the filters leave out of the list; None shows that none is left."""
        self.feature = None if feature is None else int(feature)
        self._quiet = True
        self.list.value = self.feature if self.feature in self.features else None
        self._quiet = False
        if self.feature is None:
            self.header.value = cards.message("No feature passes these filters.")
            for part in (self.tiles, self.gallery, self.histogram):
                part.value = ""
        else:
            record = self.table.loc[self.feature]
            own = self.verdicts[self.verdicts["feature"] == self.feature]
            self.header.value = cards.header(record, own, self.method.value)
            self.tiles.value = cards.tiles(record)
            self._show_images()
        self._show_similar()

    def _show_images(self) -> None:
        if self.feature is None:
            return
        top = browse.top_of(self.top, self.feature, self.split.value)
        self.gallery.value = cards.gallery(top, [self._thumbnail(int(row)) for row in top["row"]])
        at = self.feature
        self.histogram.value = cards.histogram(self.edges[at], self.counts[at], top["activation"].tolist())

    def _show_similar(self) -> None:
        found = [] if self.feature is None else browse.similar_to(self.neighbours, self.feature, N_SIMILAR)
        for button, place in zip(self.similar, found + [None] * (N_SIMILAR - len(found)), strict=True):
            self._fill(button, place and (place[0], f"{place[1]:+.2f}  #{place[0]}  {self._name(place[0])}"))

    def _name(self, feature: int) -> str:
        return shorten(self.table.loc[feature, "phrase"] or "(no name)", 60)

    @staticmethod
    def _fill(button: w.Button, content: tuple[int, str] | None) -> None:
        button.layout.display = "none" if content is None else ""
        button.feature, button.description = content or (None, "")
        button.tooltip = button.description

    def _read_thumbnail(self, row: int) -> bytes | str | None:
        path = self.data.images(row)
        if path is None:
            return self.data.caption(row)
        try:
            return cards.png(load_image(path)[0])
        except (ImageRefused, OSError):  # moved or changed since the run: shown as a card that says so
            return None

    # ---- labelling

    def _uploaded(self) -> None:
        if self.upload.value:
            self.label(bytes(self.upload.value[0]["content"]))

    def label(self, content: bytes) -> list[dict]:
        """Show which of the method's features fire on an image file's bytes, and return them, strongest first."""
        from mtlib.embed.encoders import EncoderError  # imports the encoder's libraries: only when they are needed
        from mtlib.explain.label import Labeler

        found: list[dict] = []
        try:
            image, _ = decode(content)
            method = self.method.value
            if method not in self._labelers:
                self._labelers[method] = Labeler(self.run_dir, method)
            found = self._labelers[method].get_explanations(image)
            self.upload_preview.value = cards.uploaded(cards.png(image), found)
        except ImageRefused as refused:
            self.upload_preview.value = cards.message(f"This image cannot be used: {refused}")
        except (ArtifactError, EncoderError, ValueError, OSError) as problem:
            self.upload_preview.value = cards.message(f"No labels: {problem}")
        shown = [(d["feature_num"], _label_line(d)) for d in found[:N_LABELS]]
        for button, content_of in zip(self.labels, shown + [None] * (N_LABELS - len(shown)), strict=True):
            self._fill(button, content_of)
        return found


def _title(text: str) -> w.HTML:
    return w.HTML(f'<div class="mtv"><div class="over" style="margin-top:10px">{text}</div></div>')


def _label_line(found: dict) -> str:
    mark = browse.MARKS.get(found.get("verdict") or "", " ")
    ratio = (
        "" if found.get("total_count") in (0, None) else f" · {found['wrong_count']}/{found['total_count']} implausible"
    )
    return f"{mark} {number(float(found['activation']))}  #{found['feature_num']}  {shorten(found['explanation'] or '(no name)', 60)}{ratio}"
