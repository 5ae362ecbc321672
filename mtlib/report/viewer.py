"""The feature viewer: choose a method, sort and filter its features, look at one, label an image of your own.

Reads a run's artifacts and writes nothing. What is shown is decided in browse.py, how it looks in widgets.py; here is
what happens when a widget changes.
"""

from __future__ import annotations

import base64
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mtlib.embed.images import ImageRefused, decode, load_image
from mtlib.embed.store import ADDED, load_data
from mtlib.report import browse, widgets
from mtlib.report.reader import Reader
from mtlib.report.text import number, shorten
from mtlib.report.widgets import HTML, N_LABELS, N_SIMILAR, Controls, fill_buttons
from mtlib.run.artifacts import ArtifactError

N_IMAGES = 20  # shown of a feature, the strongest of a split
MAX_LISTED = 3000  # a longer list makes browsers slow; filters shorten it


class FeatureViewer:
    """Browse the features of a finished run. Put it last in a cell to see it.

    Args: run_dir: folder of the run. method: the one to start with; "": the first.
    Attributes: feature (the number shown, or None), features (numbers in the list, in order), on (the controls), widget.
    Raises: ArtifactError when the run has no features yet, or an artifact is damaged.
    """

    def __init__(self, run_dir: str | Path = "runs/demo", method: str = ""):
        self.reader = Reader.of_run(run_dir)
        methods, folders = self.reader.methods(), self.reader.folders  # verified by the reader
        if not methods:
            raise ArtifactError(f"{run_dir}: no features yet; run the notebooks up to 05_features first")
        self.data = load_data(folders["01_embed"], *map(folders.get, ADDED))
        self.feature: int | None = None
        self.features = self.listed = np.array([], dtype=np.int64)
        self._thumbnail = lru_cache(maxsize=2000)(self._read_thumbnail)
        self._labeler = lru_cache(maxsize=None)(partial(_labeler, self.reader.run_dir))
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
        self.on.list.observe(lambda _: self._chosen(), "value")
        self.on.split.observe(lambda _: self._show_images(), "value")
        self.on.previous.on_click(lambda _: self.step(-1))
        self.on.next.on_click(lambda _: self.step(1))
        self.on.upload.observe(lambda change: [self.label(bytes(one["content"])) for one in change.new[:1]], "value")
        for button in self.on.similar + self.on.labels:
            button.on_click(lambda b: self.show(b.feature))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    # ---- what happens

    def _set_method(self) -> None:
        method = self.on.method.value
        self.verdicts, self.top = self.reader.verdicts(method), self.reader.features(method, "top_images")
        self.neighbours = self.reader.features(method, "similar")
        histograms = self.reader.folders["05_features"] / "features" / method / "histograms.npz"
        with np.load(histograms, allow_pickle=False) as saved:
            self.edges, self.counts = saved["edges"], saved["counts"]
        self._quiet = True
        self.on.judge.options = browse.judges_of(self.reader, self.verdicts) or ["–"]
        if self.feature is None and self.reader.features(method)["error_ratio"].notna().any():
            self.on.sort.value, self.on.assessed.value = "error ratio", True  # the start of a run with labels
        self._quiet = False
        self.feature = None
        self._set_judge()

    def _set_judge(self) -> None:
        if not self._quiet:
            judge = self.on.judge.value.removeprefix("–")
            self.table = browse.feature_table(self.reader, self.on.method.value, judge)
            self._refresh()

    def _refresh(self, stay: bool = True) -> None:
        if self._quiet:
            return
        on, down = self.on, self.on.descending.value
        on.descending.tooltip = f"{'highest' if down else 'lowest'} first"
        on.descending.icon = f"arrow-{'down' if down else 'up'}"
        chosen = ("sort", "descending", "min_density", "verdict", "assessed")
        self.features = browse.select(self.table, **{c: getattr(on, c).value for c in chosen}, text=on.search.value)
        kept, self.listed = self.table.loc[self.features], self.features[:MAX_LISTED]
        errors = int((kept["verdict"] == "error").sum())
        on.count.value = HTML.count(len(kept), len(self.table), errors, len(self.listed))
        lines = [browse.list_line(record, on.sort.value) for _, record in self.table.loc[self.listed].iterrows()]
        self._quiet = True
        on.list.options = list(zip(lines, map(int, self.listed), strict=True))
        self._quiet = False
        first = next(iter(self.features), None)
        self.show(self.feature if stay and self.feature in self.features else first)

    def _chosen(self) -> None:
        if not self._quiet and self.on.list.value is not None:
            self.show(self.on.list.value)

    def step(self, by: int) -> None:
        """Show the feature `by` places further down the list, wrapping round; the first when this one is not in it."""
        place = np.flatnonzero(self.features == self.feature)
        if len(self.features):
            self.show(self.features[(place[0] + by) % len(self.features) if len(place) else 0])

    def show(self, feature: int | None) -> None:
        """Show a feature by its number, also one that the filters leave out of the list; None shows that none is left."""
        self.feature = None if feature is None else int(feature)
        self._quiet = True
        self.on.list.value = self.feature if self.feature in self.listed else None
        self._quiet = False
        if self.feature is None:
            self.on.header.value = HTML.message("No feature passes these filters.")
            self.on.tiles.value = self.on.gallery.value = self.on.histogram.value = ""
            fill_buttons(self.on.similar, [])
            return
        record = self.table.loc[self.feature].to_dict()
        own = self.verdicts[self.verdicts["feature"] == self.feature].to_dict("records")
        self.on.header.value = HTML.header(record, own, self.on.method.value)
        self.on.tiles.value = HTML.tiles(record)
        self._show_images()
        near = self.neighbours[self.neighbours["feature"] == self.feature]
        near = near.sort_values("cosine", ascending=False, kind="stable").head(N_SIMILAR)
        pairs = near[["neighbour", "cosine"]].itertuples(index=False)
        texts = [(f, f"{cosine:+.2f}  #{f}  {_name(self.table.loc[f, 'phrase'])}") for f, cosine in pairs]
        fill_buttons(self.on.similar, texts)

    def _show_images(self) -> None:
        if self.feature is None:
            return
        top = self.top[(self.top["feature"] == self.feature) & (self.top["split"] == self.on.split.value)]
        top, at = top.sort_values("rank", kind="stable").head(N_IMAGES), self.feature
        self.on.gallery.value = widgets.gallery(top, [self._thumbnail(int(row)) for row in top["row"]])
        self.on.histogram.value = widgets.histogram(self.edges[at], self.counts[at], top["activation"].tolist())

    def _read_thumbnail(self, row: int) -> bytes | str | None:
        path = self.data.images(row)
        if path is None:
            return self.data.caption(row)
        try:
            return widgets.png(load_image(path)[0])
        except (ImageRefused, OSError):  # moved or changed since the run: shown as a card that says so
            return None

    # ---- labelling

    def label(self, content: bytes) -> list[dict]:
        """Show which of the method's features explain an image file's bytes, and return them, strongest first."""
        found, preview = [], self.on.upload_preview
        try:
            image, _ = decode(content)
            preview.value = HTML.message("Looking at it …")
            said = self._labeler(self.on.method.value).label(image)
            found = said["explanations"]
            preview.value = HTML.uploaded(base64.b64encode(widgets.png(image)).decode(), said)
        except ImageRefused as refused:
            preview.value = HTML.message(f"This image cannot be used: {refused}")
        except (RuntimeError, ValueError, OSError) as problem:  # of the run, its encoder or its classifier
            preview.value = HTML.message(f"No labels: {problem}")
        fill_buttons(self.on.labels, [(d["feature_num"], _label_line(d)) for d in found[:N_LABELS]])
        return found


def _labeler(run_dir: Path, method: str):
    from mtlib.judge.labeler import Labeler  # imports the encoder's libraries: only when they are needed

    return Labeler(run_dir, method)


def _name(phrase: str) -> str:
    return shorten(phrase or "(no name)", 60)


def _label_line(found: dict) -> str:
    mark = browse.MARKS.get(found.get("verdict") or "", " ")
    known = found.get("wrong_count") is not None and found.get("total_count")
    ratio = f" · {found['wrong_count']}/{found['total_count']} implausible" if known else ""
    ratio += f" · {found['precision']:.0%} right" if found.get("precision") else ""
    return f"{mark} {number(float(found['activation']))}  #{found['feature_num']}  {_name(found['explanation'])}{ratio}"
