"""The feature viewer: choose a run and a method, sort and filter its features, look at one, at one of its images, at an image of yours.

Reads a run's artifacts and writes nothing. What is shown is decided in browse.py, how it looks in widgets.py; here is
what happens when a widget changes.
"""

from __future__ import annotations

import os
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.images import ImageRefused, decode, load_image
from mtlib.embed.store import ADDED, load_data
from mtlib.features import where
from mtlib.measure.codes import first_seeds, open_subjects, sparse_codes, subject_named
from mtlib.report import browse
from mtlib.report.reader import Reader
from mtlib.report.serve import RUN
from mtlib.report.text import number, shorten
from mtlib.report.widgets import HTML, N_LABELS, N_SIMILAR, Controls, data_url, fill_buttons, fill_gallery
from mtlib.run.artifacts import ROOT, ArtifactError, finished_runs

N_IMAGES = 20  # shown of a feature, the strongest of a split
MAX_LISTED = 3000  # a longer list makes browsers slow; filters shorten it


class FeatureViewer:
    """Browse the features of finished runs. Put it last in a cell to see it.

    Args: run_dir: folder of the run to start with; "": the one that ./run_all.sh viewer named, else the newest.
    Attributes: feature (the number shown, or None), features (numbers in the list, in order), on (the controls), widget.
    Raises: ArtifactError when there is no run with features, or an artifact is damaged.
    """

    def __init__(self, run_dir: str | Path = ""):
        run_dir = run_dir or os.environ.get(RUN, "")
        runs = finished_runs(run_dir)
        self.feature: int | None = None
        self.features = np.array([], dtype=np.int64)
        self._quiet = False
        self.on = Controls([(run.name, run) for run in runs], ROOT / run_dir if run_dir else runs[0])
        self.widget = self.on.widget
        self._set_run()
        self._observe()

    def _observe(self) -> None:
        self.on.run.observe(lambda _: self._change_run(), "value")
        self.on.method.observe(lambda _: self._set_method(), "value")
        self.on.judge.observe(lambda _: self._set_judge(), "value")
        for control in (self.on.sort, self.on.descending):
            control.observe(lambda _: self._refresh(stay=False), "value")
        for control in (self.on.search, self.on.verdict, self.on.min_density, self.on.assessed):
            control.observe(lambda _: self._refresh(), "value")
        self.on.list.observe(lambda _: self._chosen(self.on.list, self.show), "value")
        self.on.gallery.observe(lambda _: self._chosen(self.on.gallery, self.show_image), "value")
        for control in (self.on.split, self.on.where):
            control.observe(lambda _: self._show_images(), "value")
        self.on.upload.observe(lambda change: [self.label(bytes(one["content"])) for one in change.new[:1]], "value")
        for button in self.on.similar + self.on.labels:
            button.on_click(lambda b: self.show(b.feature))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    # ---- what happens

    def _change_run(self) -> None:
        try:
            self._set_run()
        except ArtifactError as damaged:
            self.on.note.value = HTML.message(f"{damaged}. Below is still the run {self.reader.name}.")

    def _set_run(self) -> None:
        reader = Reader.of_run(self.on.run.value)  # verified
        folders, methods = reader.folders, reader.methods()
        if not methods:
            raise ArtifactError(f"{reader.run_dir}: no features yet; run the notebooks up to 05_features first")
        self.data, self.reader = load_data(folders["01_embed"], *map(folders.get, ADDED)), reader
        self._thumbnail = lru_cache(maxsize=2000)(self._read_thumbnail)
        self._labeler = lru_cache(maxsize=None)(partial(_labeler, reader.run_dir))
        self._encoder = lru_cache(maxsize=None)(partial(where.encoder_of, self.data))
        self._subjects = lru_cache(maxsize=None)(lambda: first_seeds(open_subjects(folders["03_train"])[0]))
        self.on.note.value = HTML.message(reader.note) if reader.note else ""
        self._quiet, self.feature = True, None
        self.on.method.options = methods
        self._quiet = False
        self._set_method()

    def _set_method(self) -> None:
        if self._quiet:
            return
        method = self.on.method.value
        self.verdicts, self.top = self.reader.verdicts(method), self.reader.features(method, "top_images")
        self.neighbours = self.reader.features(method, "similar")
        self._quiet = True
        self.on.judge.options = browse.judges_of(self.reader, self.verdicts) or ["–"]
        if self.feature is None:  # the start of a run: with labels, its errors
            labelled = bool(self.reader.features(method)["error_ratio"].notna().any())
            self.on.sort.value, self.on.assessed.value = "error ratio" if labelled else "max activation", labelled
        self._quiet, self.feature = False, None
        self.on.preview.value = ""
        fill_buttons(self.on.labels, [])
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
        on.descending.description = "↓" if down else "↑"
        chosen = ("sort", "descending", "min_density", "verdict", "assessed")
        found = browse.select(self.table, **{c: getattr(on, c).value for c in chosen}, text=on.search.value)
        kept = self.table.loc[found]
        first, copies = kept.drop_duplicates("copy_of"), kept["copy_of"].value_counts()
        self.features, listed = first.index.to_numpy(), first[:MAX_LISTED]
        self.place = dict(zip(listed["copy_of"], listed.index, strict=True))  # of what it copies -> in the list
        errors = int((kept["verdict"] == "error").sum())
        on.count.value = HTML.count(len(kept), len(self.table), errors, len(first), len(listed))
        lines = [browse.list_line(r, on.sort.value, copies[r["copy_of"]]) for _, r in listed.iterrows()]
        self._quiet = True
        on.list.options = list(zip(lines, map(int, listed.index), strict=True))
        self._quiet = False
        self.show(self.feature if stay and self.feature in kept.index else next(iter(self.features), None))

    def _chosen(self, control, show) -> None:
        if not self._quiet and control.value is not None:
            show(control.value)

    def show(self, feature: int | None) -> None:
        """Show a feature by its number, also one that the filters leave out of the list; None shows that none is left."""
        self.feature = None if feature is None else int(feature)
        group = None if feature is None else self.table.loc[self.feature, "copy_of"]
        self._quiet = True
        self.on.list.value = self.place.get(group)
        self._quiet = False
        self._show_images()
        if self.feature is None:
            self.on.header.value = HTML.message("No feature passes these filters.")
            self.on.tiles.value = ""
            fill_buttons(self.on.similar, [])
            return
        own = self.verdicts[self.verdicts["feature"] == self.feature].to_dict("records")
        copies = self.table.index[(self.table["copy_of"] == group) & (self.table.index != self.feature)]
        self.on.header.value = HTML.header(
            self.table.loc[self.feature].to_dict(), own, self.on.method.value, list(copies)
        )
        self.on.tiles.value = HTML.tiles(self.table.loc[self.feature].to_dict())
        near = self.neighbours[self.neighbours["feature"] == self.feature]
        near = near.sort_values("cosine", ascending=False, kind="stable").head(N_SIMILAR)
        pairs = near[["neighbour", "cosine"]].itertuples(index=False)
        fill_buttons(self.on.similar, [(f, f"{cosine:+.2f}  {self._named(f)}") for f, cosine in pairs])

    def _named(self, feature: int) -> str:
        return f"#{feature}  {_name(self.table.loc[feature, 'phrase'])}"

    def _show_images(self) -> None:
        top = self.top[(self.top["feature"] == self.feature) & (self.top["split"] == self.on.split.value)]
        top = top.sort_values("rank", kind="stable").head(N_IMAGES)
        self._quiet = True
        heat = self.on.where.value and self.data.image_root is not None
        fill_gallery(self.on, top, self._heated(top) if heat else [self._thumbnail(int(row)) for row in top["row"]])
        self._quiet = False

    def _heated(self, top: pd.DataFrame) -> list[tuple[str, str]]:
        """As `_read_thumbnail`, of all images of a feature, with where it fires over them."""
        coder, grid = subject_named(self._subjects(), self.on.method.value).coder, where.on_grid(self.data)
        try:
            maps = where.heat_maps(self.data, coder, top[["feature", "row"]], None if grid else self._encoder())
            images = [load_image(self.data.images(row))[0] for row in top["row"]]
        except (ImageRefused, RuntimeError) as problem:  # an image that changed; an encoder that is not at hand
            return [("", shorten(str(problem)))] * len(top)
        pairs = zip(images, where.levels(maps), strict=True)
        return [(data_url(where.overlay(image, level, grid)), "") for image, level in pairs]

    def _read_thumbnail(self, row: int) -> tuple[str, str]:
        """Data URL of an image, and the word that stands for it where there is none."""
        if self.data.image_root is None:
            return "", shorten(self.data.caption(row))
        try:
            return data_url(load_image(self.data.images(row))[0]), ""
        except ImageRefused:  # moved or changed since the run
            return "", "cannot be read"

    def show_image(self, row: int) -> None:
        """Show an image of the run by its row, and the features that fire on it: those first that are nearest to their maximum."""
        tokens, coder = self.data.tokens, subject_named(self._subjects(), self.on.method.value).coder
        rows = row // tokens * tokens + np.arange(tokens)
        z = sparse_codes(coder, self.data.x, rows, tokens=tokens).toarray()[0]  # (S,)
        fires = self.table[z > 0].assign(z=z[z > 0], share=lambda f: f["z"] / f["max_activation"])
        fires = fires.sort_values("share", ascending=False, kind="stable").drop_duplicates("copy_of").head(N_LABELS)
        self.on.preview.value = HTML.image(*self._thumbnail(row), self.data.manifest.iloc[row].to_dict())
        found = [(f, f"{number(z[f])}  ({share:.0%})  {self._named(f)}") for f, share in fires["share"].items()]
        fill_buttons(self.on.labels, found)

    # ---- labelling

    def label(self, content: bytes) -> list[dict]:
        """Show which of the method's features explain an image file's bytes, and return them, strongest first."""
        found, preview, self.on.gallery.value = [], self.on.preview, None
        try:
            image, _ = decode(content)
            preview.value = HTML.message("Looking at it …")
            said = self._labeler(self.on.method.value).label(image)
            found = said["explanations"]
            preview.value = HTML.uploaded(data_url(image), said)
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
