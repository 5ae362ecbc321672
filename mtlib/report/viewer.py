"""The feature viewer: choose a method, sort and filter its features, look at one, label an image of your own.

Reads a run's artifacts and writes nothing. What is shown is decided in browse.py, how it looks in widgets.py; here is
what happens when a widget changes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.images import ImageRefused, decode, load_image
from mtlib.embed.store import ADDED, load_data
from mtlib.report import browse, widgets
from mtlib.report.reader import Reader
from mtlib.report.text import number, shorten
from mtlib.report.widgets import HTML, N_LABELS, N_SIMILAR, Controls, fill_button
from mtlib.run.artifacts import ArtifactError

MAX_LISTED = 3000  # a longer list makes browsers slow; filters shorten it


class FeatureViewer:
    """Browse the features of a finished run. Put it last in a cell to see it.

    Args:
        run_dir: folder of the run, e.g. "runs/demo"; relative paths are taken from the repository root.
        method:  the method to start with; "" for the first one.
    Attributes: feature (the number shown, or None), features (numbers in the list, in order), on (the controls), widget.
    Raises: ArtifactError when the run has no features yet, or an artifact is damaged.
    """

    def __init__(self, run_dir: str | Path = "runs/demo", method: str = ""):
        self.reader = Reader.of_run(run_dir)
        methods = self.reader.methods()
        if not methods:
            raise ArtifactError(f"{run_dir}: no features yet; run the notebooks up to 05_features first")
        self.run_dir = Path(__file__).resolve().parents[2] / run_dir
        folders = self.reader.folders  # verified by the reader
        self.data = load_data(folders["01_embed"], *map(folders.get, ADDED))
        self.feature: int | None = None
        self.features = self.listed = np.array([], dtype=np.int64)
        self._thumbnail = lru_cache(maxsize=2000)(self._read_thumbnail)
        self._labelers: dict = {}
        self._quiet = False
        self.on = Controls(methods, method or methods[0], self.reader.name)
        self.widget = self.on.widget
        self._observe()
        self._set_method()

    def _observe(self) -> None:
        self.on.method.observe(lambda _: self._set_method(), "value")
        self.on.judge.observe(lambda _: self._set_judge(), "value")
        for control in (self.on.sort, self.on.descending):
            control.observe(lambda _: self._refresh(stay=False), "value")
        for control in (self.on.search, self.on.verdict, self.on.min_density, self.on.assessed):
            control.observe(lambda _: self._refresh(), "value")
        self.on.list.observe(lambda change: self._chosen(change["new"]), "value")
        self.on.split.observe(lambda _: self._show_images(), "value")
        self.on.previous.on_click(lambda _: self.step(-1))
        self.on.next.on_click(lambda _: self.step(1))
        self.on.upload.observe(lambda _: self._uploaded(), "value")
        for button in self.on.similar + self.on.labels:
            button.on_click(lambda b: self.show(b.feature))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    # ---- what happens

    def _set_method(self) -> None:
        method = self.on.method.value
        folder = self.reader.folders["05_features"] / "features" / method
        self.verdicts, self.top = self.reader.verdicts(method), self.reader.top_images(method)
        with np.load(folder / "histograms.npz", allow_pickle=False) as saved:
            self.edges, self.counts = saved["edges"], saved["counts"]
        self.neighbours = pd.read_parquet(folder / "similar.parquet")
        self._quiet = True
        self.on.judge.options = browse.judges_of(self.reader, self.verdicts) or ["–"]
        if self.feature is None and self.reader.features(method)["error_ratio"].notna().any():
            self.on.sort.value, self.on.assessed.value = "error ratio", True  # the start of a run with labels
        self._quiet = False
        self.feature = None
        self._set_judge()

    def _set_judge(self) -> None:
        if self._quiet:
            return
        judge = "" if self.on.judge.value == "–" else self.on.judge.value
        self.table = browse.feature_table(self.reader, self.on.method.value, judge)
        self._refresh()

    def query(self) -> browse.Query:
        """The choice that the controls stand for."""
        return browse.Query(
            sort=self.on.sort.value,
            descending=self.on.descending.value,
            min_density=self.on.min_density.value,
            verdict=self.on.verdict.value,
            assessed=self.on.assessed.value,
            text=self.on.search.value,
        )

    def _refresh(self, stay: bool = True) -> None:
        if self._quiet:
            return
        query = self.query()
        self.on.descending.tooltip = "highest first" if query.descending else "lowest first"
        self.on.descending.icon = "arrow-down" if query.descending else "arrow-up"
        self.features = browse.select(self.table, query)
        chosen, self.listed = self.table.loc[self.features], self.features[:MAX_LISTED]
        errors = int((chosen["verdict"] == "error").sum())
        self.on.count.value = HTML.count(len(chosen), len(self.table), errors, len(self.listed))
        lines = [browse.list_line(record, query.sort) for _, record in self.table.loc[self.listed].iterrows()]
        self._quiet = True
        self.on.list.options = list(zip(lines, map(int, self.listed), strict=True))
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
        self.on.list.value = self.feature if self.feature in self.listed else None
        self._quiet = False
        if self.feature is None:
            self.on.header.value = HTML.message("No feature passes these filters.")
            for part in (self.on.tiles, self.on.gallery, self.on.histogram):
                part.value = ""
        else:
            record = self.table.loc[self.feature]
            own = self.verdicts[self.verdicts["feature"] == self.feature]
            self.on.header.value = widgets.header(record, own, self.on.method.value)
            self.on.tiles.value = widgets.tiles(record)
            self._show_images()
        self._show_similar()

    def _show_images(self) -> None:
        if self.feature is None:
            return
        top = browse.top_of(self.top, self.feature, self.on.split.value)
        self.on.gallery.value = widgets.gallery(top, [self._thumbnail(int(row)) for row in top["row"]])
        at = self.feature
        self.on.histogram.value = widgets.histogram(self.edges[at], self.counts[at], top["activation"].tolist())

    def _show_similar(self) -> None:
        found = [] if self.feature is None else browse.similar_to(self.neighbours, self.feature, N_SIMILAR)
        for button, place in zip(self.on.similar, found + [None] * (N_SIMILAR - len(found)), strict=True):
            fill_button(button, place and (place[0], f"{place[1]:+.2f}  #{place[0]}  {self._name(place[0])}"))

    def _name(self, feature: int) -> str:
        return shorten(self.table.loc[feature, "phrase"] or "(no name)", 60)

    def _read_thumbnail(self, row: int) -> bytes | str | None:
        path = self.data.images(row)
        if path is None:
            return self.data.caption(row)
        try:
            return widgets.png(load_image(path)[0])
        except (ImageRefused, OSError):  # moved or changed since the run: shown as a card that says so
            return None

    # ---- labelling

    def _uploaded(self) -> None:
        if self.on.upload.value:
            self.label(bytes(self.on.upload.value[0]["content"]))

    def label(self, content: bytes) -> list[dict]:
        """Show which of the method's features fire on an image file's bytes, and return them, strongest first."""
        found: list[dict] = []
        try:
            image, _ = decode(content)
            self.on.upload_preview.value = HTML.message("Looking at it …")
            said = self._said(image)
            found = said["explanations"]
            self.on.upload_preview.value = widgets.uploaded(widgets.png(image), said)
        except ImageRefused as refused:
            self.on.upload_preview.value = HTML.message(f"This image cannot be used: {refused}")
        except (ArtifactError, ValueError, OSError) as problem:
            self.on.upload_preview.value = HTML.message(f"No labels: {problem}")
        shown = [(d["feature_num"], _label_line(d)) for d in found[:N_LABELS]]
        for button, content_of in zip(self.on.labels, shown + [None] * (N_LABELS - len(shown)), strict=True):
            fill_button(button, content_of)
        return found

    def _said(self, image) -> dict:
        from mtlib.embed.encoders import EncoderError  # imports the encoder's libraries: only when they are needed
        from mtlib.judge.labeler import Labeler

        method = self.on.method.value
        try:
            if method not in self._labelers:
                self._labelers[method] = Labeler(self.run_dir, method)
            return self._labelers[method].label(image)
        except EncoderError as problem:
            raise ValueError(str(problem)) from problem


def _label_line(found: dict) -> str:
    mark = browse.MARKS.get(found.get("verdict") or "", " ")
    known = found.get("wrong_count") is not None and found.get("total_count")
    ratio = f" · {found['wrong_count']}/{found['total_count']} implausible" if known else ""
    name = shorten(found["explanation"] or "(no name)", 60)
    return f"{mark} {number(float(found['activation']))}  #{found['feature_num']}  {name}{ratio}"
