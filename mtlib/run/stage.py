"""A stage: one notebook's verified inputs, its output folder, and what it declares for the report.

A quantity is declared once, in the cell that makes it: `table`, `figure` and `say` write its file, note its caption,
headings or sentence in the stage's `report.json`, and hand back what the notebook shows. The report is one template over
these files.

    runs/<run>/02_classify-1a2b3c4d/report.json     {"stage", "prefix", "items": [...], "skipped": [...]}
"""

from __future__ import annotations

import re
import resource
import shutil
import sys
from pathlib import Path

from mtlib.run import artifacts, dependencies
from mtlib.run import params as parameters
from mtlib.run.artifacts import ArtifactError, one_line

REPORT, SKIPPED = "report.json", "skipped.json"
SCRATCH = ("checkpoint", "shards")  # folders for resuming, removed when a stage finishes
NAMES = "method judge phrase verdict category status reason cause family generator detail image known explanation"
NAMES = NAMES.split()  # columns that are text even where a name looks like a number, or like nothing
FORMULA = re.compile(r"('*)[=+@＝＋＠－-]")  # the start of what a spreadsheet would calculate
DIGITS = 3  # of the numbers that a notebook shows; the CSV has six


class Stage:
    """One notebook's place on disk.

    Args:
        name:   the notebook's name, e.g. "02_classify".
        given:  the notebook's `globals()`, which hold `run_dir`, `stage_dir` ("" in an interactive session) and its
                parameters; or the folder of the run, and the other two as arguments.
        prefix: what names of figures and tables start with; None: the stage's number or name.
    """

    def __init__(
        self, name: str, given: dict | str, stage_dir: str = "", params: dict | None = None, prefix: str | None = None
    ):
        self.name, self.root = name, Path(__file__).resolve().parents[2]
        if isinstance(given, dict):
            cell = parameters.notebook_parameters(self.root / "notebooks" / f"{name}.py")
            params = {key: given[key] for key in cell if key not in parameters.RESERVED}
            given, stage_dir = given["run_dir"], given["stage_dir"]
        self.number = prefix if prefix is not None else name.split("_")[0] if name[:1].isdigit() else name
        self.run_dir = self.root / given
        self.interactive = not stage_dir
        self.out = self.root / stage_dir if stage_dir else self.run_dir / f"{name}-interactive"
        self.params, self.inputs, self.items = params or {}, {}, {}
        if self.interactive:  # as the pipeline does before its first stage
            dependencies.check_inputs(self.params, self.root)
        if self.interactive and artifacts.current(self.run_dir).get(name) == self.out.name:
            artifacts.set_current(self.run_dir, name, None)  # what it made last time goes, now that it runs again
        if self.interactive and (self.out / artifacts.META).exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / artifacts.META).unlink(missing_ok=True)

    def settings(self, model: type[parameters.Settings]) -> parameters.Settings:
        """A settings model filled from the parameters of its fields' names."""
        return model(**{name: self.params[name] for name in model.model_fields if name in self.params})

    def has(self, stage: str) -> bool:
        """Whether an earlier stage has an artifact; one that the pipeline skipped has none."""
        return stage in artifacts.current(self.run_dir)

    def input(self, stage: str) -> Path:
        """Folder of an earlier stage's artifact, verified; recorded as an input of this one."""
        name = artifacts.current(self.run_dir).get(stage)
        if name is None:
            raise ArtifactError(f"{self.run_dir.name}: no artifact of {stage} yet; run notebook {stage} first")
        folder = self.run_dir / name
        if stage not in self.inputs:
            self.inputs[stage] = artifacts.digest(artifacts.verify(folder))
        return folder

    def facts(self, stage: str) -> dict:
        """What an earlier stage recorded about its artifact (d_in, class names, ...)."""
        return artifacts.read_meta(self.input(stage))["facts"]

    def read(self, stage: str, name: str):
        """tables/<name>.csv of an earlier stage, e.g. "04_metrics"; see `input` and `table_of`."""
        return table_of(self.input(stage), name)

    def table(self, frame, name: str, caption: str = "", headings: dict[str, str] | None = None):
        """Write tables/<NN>_<name>.csv: six significant digits, no index, "\\n" line ends; and declare it.

        Args: headings: column -> heading, of the columns to show and in that order; those that `frame` lacks are left out.
            None: the notebook shows all of them, and the report links the CSV.
        Returns: the frame to show, the last line of a cell.
        """
        from pandas.api.types import infer_dtype

        write_csv(self.out / "tables" / f"{self.number}_{name}.csv", frame)
        texts = [c for c in frame if infer_dtype(frame[c].astype(object)) == "string"]  # "01" and "NA" among them
        listed = list(headings.items()) if headings else None  # in this order
        self._declare("table", name, caption, headings=listed, texts=texts)
        shown = frame if headings is None else frame[[c for c in headings if c in frame]].rename(columns=headings)
        return shown.round(DIGITS)

    def figure(self, fig, name: str, frame, caption: str = "") -> None:
        """Write and show figures/<NN>_<name>.png, drawn once; as tables/<NN>_<name>.csv its numbers; without one, only these."""
        from mtlib import plots

        self.table(frame, name, caption)
        if fig is None:
            return
        image = plots.png(fig)
        with artifacts.atomic(self.out / "figures" / f"{self.number}_{name}.png") as tmp:
            tmp.write_bytes(image)
        plots.show(fig, image, caption)
        self._declare("figure", name, caption)

    def say(self, key: str, sentence: str):
        """Declare the one sentence that the report repeats. Returns it as Markdown to show."""
        from IPython.display import Markdown

        self._declare("say", key, sentence)
        return Markdown(sentence)

    def _declare(self, kind: str, name: str, caption: str, **more) -> None:
        self.items[name if kind != "say" else f"say {name}"] = dict(kind=kind, name=name, caption=caption) | more

    def finish(self, provides: list[str] | tuple[str, ...] = (), **facts) -> None:
        """Close the stage: write report.json, hash every file, write meta.json last.

        Args: provides: what later stages and sections may need, e.g. "labels", "truth". facts: JSON values without NaN.
        """
        for name in SCRATCH:
            shutil.rmtree(self.out / name, ignore_errors=True)
        for left in self.out.rglob(".*.tmp*"):  # of a process that was killed within `atomic`
            left.unlink()
        skipped = self.out / SKIPPED
        left_out = artifacts.read_record(skipped, "run the stage again") if skipped.is_file() else {"skipped": []}
        skipped.unlink(missing_ok=True)
        declared = {"stage": self.name, "prefix": self.number, "items": list(self.items.values())} | left_out
        artifacts.write_json(self.out / REPORT, declared)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        meta = {
            "stage": self.name,
            "params": self.params,
            "inputs": self.inputs,
            "facts": facts | ({"provides": sorted(provides)} if provides else {}),
            "versions": artifacts.versions(),
            "git_commit": artifacts.git_commit(),
            "peak_mb": round(peak / (1024 if sys.platform != "darwin" else 1024**2)),
        }
        artifacts.close(self.out, **meta)
        if self.interactive:
            artifacts.set_current(self.run_dir, self.name, self.out.name)


def read_report(folder: Path) -> dict:
    """What a finished stage declared. Raises ArtifactError where it is damaged."""
    return artifacts.read_json(folder / REPORT, f"delete {folder} and run the stage again")


def write_csv(path: Path, frame, floats: str | None = "%.6g") -> None:
    """Write a frame without its index; texts are safe to look at: each as `one_line`, and behind ' where a spreadsheet would
    calculate it ("=1+1", but not "-1"). `read_back` takes that off again. Args: floats: how fractions are written; None: in full."""
    import pandas as pd

    safe = frame.rename(columns=_quoted)
    for i, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            safe.isetitem(i, pd.Series(list(map(_quoted, frame.iloc[:, i])), index=frame.index, dtype=object))
    with artifacts.atomic(path) as tmp:
        safe.to_csv(tmp, index=False, float_format=floats, lineterminator="\n")


def _quoted(value):
    """A cell of a CSV."""
    try:
        float(value)
    except (TypeError, ValueError):
        value = one_line(value) if isinstance(value, str) else value
        return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value
    return value


def read_back(path: Path, texts=()):
    """What `write_csv` wrote: nothing is missing but an empty field, and a name is text whatever it looks like ("NA", "01").

    Args: texts: columns of text besides NAMES. Returns: frame; empty texts of NAMES are "", others NaN.
    """
    import pandas as pd

    frame = pd.read_csv(path, dtype=dict.fromkeys([*NAMES, *texts], str), keep_default_na=False, na_values=[""])
    frame = frame.rename(columns=_unquoted)
    texts = [c for c in frame if not pd.api.types.is_numeric_dtype(frame[c])]
    frame = frame.assign(**{c: frame[c].map(_unquoted).astype(frame[c].dtype) for c in texts})
    return frame.fillna({c: "" for c in NAMES if c in frame})


def _unquoted(value):
    return value[1:] if isinstance(value, str) and (found := FORMULA.match(value)) and found[1] else value


def table_of(folder: Path, name: str):
    """tables/<name>.csv of a stage's folder, by `read_back`; which columns are texts is what the stage declared."""
    said = read_report(folder) if (folder / REPORT).is_file() else {"items": []}
    own = (item.get("texts", ()) for item in said["items"] if f"{said['prefix']}_{item['name']}" == name)
    return read_back(folder / "tables" / f"{name}.csv", [c for texts in own for c in texts])
