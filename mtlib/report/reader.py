"""What the report and the viewer read of a run: tables, figures and facts of its finished stages, by name."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mtlib.run.artifacts import META, ROOT, open_run, read_meta
from mtlib.run.stage import REPORT, Stage, read_back, read_report, table_of

READ = ("01_embed", "02_classify", "03_train", "truth", "05_features", "06_interpret")  # by a stage; a report reads all


class Reader:
    """The folders of a run's stages, in which its tables are found by name.

    Args: folders: stage -> folder of its artifact (verified). run_dir: None where only the stages' own files are read.
    """

    def __init__(self, name: str, folders: dict[str, Path], run_dir: Path | None = None):
        self.name, self.run_dir = name, run_dir
        self.folders = dict(sorted(folders.items(), key=lambda item: not item[0][:1].isdigit()))  # numbered ones first

    @classmethod
    def of_run(cls, run_dir: str | Path) -> Reader:
        """The stages that a run has finished, each verified; see `open_run`."""
        return cls(Path(run_dir).name, open_run(run_dir), ROOT / run_dir)

    @classmethod
    def of_stage(cls, stage: Stage) -> Reader:
        """The stages that notebook 07 reads (verified, recorded as its inputs) and what it has written so far itself."""
        before = [s for s in READ if stage.has(s) and s != stage.name]
        return cls(stage.run_dir.name, {s: stage.input(s) for s in before} | {stage.name: stage.out})

    def meta(self, stage: str) -> dict:
        """What a finished stage recorded of itself: facts, params and more; {} when it has not run."""
        return {} if self.find(stage, META) is None else read_meta(self.folders[stage])

    def facts(self, stage: str) -> dict:
        """The facts that a finished stage recorded; {} when it has not run."""
        return self.meta(stage).get("facts", {})

    def params(self, stage: str) -> dict:
        """The parameters that a finished stage ran with; {} when it has not run."""
        return self.meta(stage).get("params", {})

    @property
    def note(self) -> str:
        """What every output of the run says first: that its encoder knows drawings only, and why nothing is named; "" mostly."""
        embed, judged = self.facts("01_embed"), self.facts("06_interpret")
        said = embed.get("told", "")
        why = judged.get("unnamed", "") if judged.get("judge") == "keyless" else ""
        return f"{said} Features have no names: {why}.".strip() if why else said

    def has(self, need: str) -> bool:
        """Whether a finished stage provides what others may need: "truth", "labels" and the like."""
        return any(need in self.facts(stage).get("provides", []) for stage in self.folders)

    def declared(self, stage: str) -> dict:
        """What a finished stage declared for the report: its `items`, the `prefix` of their files, and what was `skipped`."""
        return {"items": [], "skipped": []} if self.find(stage, REPORT) is None else read_report(self.folders[stage])

    def find(self, stage: str, path: str) -> Path | None:
        """A file or folder of a stage's artifact, or None when there is none."""
        folder = self.folders.get(stage)
        return folder / path if folder is not None and (folder / path).exists() else None

    def table(self, name: str) -> pd.DataFrame:
        """tables/<name>.csv of the stage that has it, e.g. "04_causes"; an empty frame when there is none."""
        stage = next((s for s in self.folders if self.find(s, f"tables/{name}.csv")), None)
        return pd.DataFrame() if stage is None else table_of(self.folders[stage], name)

    def methods(self) -> list[str]:
        """Methods whose features were interpreted (05), in the order of the coders' table (03) where there is one."""
        folder = self.find("05_features", "features")
        if folder is None:
            return []
        present = {p.parent.name for p in folder.glob("*/features.parquet")}
        coders = self.find("03_train", "coders.csv")
        order = list(dict.fromkeys(read_back(coders)["method"])) if coders else []
        return [m for m in order if m in present] + sorted(present - set(order))

    def features(self, method: str, name: str = "features") -> pd.DataFrame:
        """features/<method>/<name>.parquet of 05: its features, their "top_images" or the "similar" ones."""
        return pd.read_parquet(self.folders["05_features"] / "features" / method / f"{name}.parquet")

    def verdicts(self, method: str) -> pd.DataFrame:
        """explanations/<method>/verdicts.parquet of 06; an empty frame with its columns when there is none."""
        path = self.find("06_interpret", f"explanations/{method}/verdicts.parquet")
        columns = ["feature", "judge", "phrase", "verdict", "category", "confidence", "detail"]
        frame = pd.DataFrame(columns=columns) if path is None else pd.read_parquet(path)
        return frame.fillna({c: "" for c in ("phrase", "verdict", "category", "detail") if c in frame})

    def thresholds(self, method: str) -> pd.DataFrame:
        """From which activation on 06 lets each feature of a method label images (`mtlib.judge.thresholds.of_val`); empty without."""
        path = self.find("06_interpret", f"explanations/{method}/thresholds.parquet")
        return pd.DataFrame() if path is None else pd.read_parquet(path)

    def collages(self, method: str) -> dict[int, Path]:
        """Feature number -> its collage of 05."""
        folder = self.find("05_features", f"features/{method}/collages")
        return {} if folder is None else {int(p.stem): p for p in folder.glob("*.jpg")}

    def heat(self, method: str) -> Path | None:
        """The heat maps of a method's features: of tokens on a grid all that 05 drew, else of the errors that 07 found."""
        return self.find("05_features", f"features/{method}/heat.npz") or self.find("07_results", f"heat/{method}.npz")
