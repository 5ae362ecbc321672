"""What the report and the viewer read: the tables, figures and facts of a run's finished stages, by name."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mtlib.run.artifacts import ArtifactError, current, read_meta, verify
from mtlib.run.stage import Stage

STAGES = ("01_embed", "02_classify", "03_train", "04_evaluate", "05_features", "06_interpret", "07_results")
TEXT = (
    "method",
    "judge",
    "phrase",
    "verdict",
    "category",
    "status",
    "reason",
    "cause",
    "family",
    "generator",
    "detail",
    "image",
    "known",
    "explanation",
)


class Reader:
    """The folders of a run's stages. A table or figure is found by its number: "04_causes" is in 04_evaluate.

    Args:
        name:    the run's name, e.g. "demo".
        folders: stage -> folder of its artifact (verified), stages without one left out.
    """

    def __init__(self, name: str, folders: dict[str, Path]):
        self.name = name
        self.folders = folders

    @classmethod
    def of_run(cls, run_dir: str | Path) -> Reader:
        """The stages that a run has finished, each verified.

        Raises: ArtifactError when there are none or a file is damaged.
        """
        run_dir = Path(run_dir)
        if not run_dir.is_absolute():
            run_dir = Path(__file__).resolve().parents[2] / run_dir
        names = current(run_dir)
        if not names:
            raise ArtifactError(f"{run_dir}: no finished stage here; run ./run_all.sh or the notebooks first")
        folders = {stage: run_dir / names[stage] for stage in (*STAGES, "truth") if stage in names}
        for folder in folders.values():
            verify(folder)
        return cls(run_dir.name, folders)

    @classmethod
    def of_stage(cls, stage: Stage) -> Reader:
        """The stages before `stage` (verified, recorded as its inputs) and what it has written so far itself."""
        done = current(stage.run_dir)
        earlier = [s for s in STAGES if s < stage.name] + ["truth"] * ("04_evaluate" < stage.name != "truth")
        folders = {s: stage.input(s) for s in earlier if s in done}
        return cls(stage.run_dir.name, folders | {stage.name: stage.out})

    def facts(self, stage: str) -> dict:
        """The facts that a finished stage recorded; {} when it has not run."""
        folder = self.folders.get(stage)
        return read_meta(folder)["facts"] if folder is not None and (folder / "meta.json").is_file() else {}

    def params(self, stage: str) -> dict:
        """The parameters that a finished stage ran with; {} when it has not run."""
        folder = self.folders.get(stage)
        return read_meta(folder)["params"] if folder is not None and (folder / "meta.json").is_file() else {}

    def find(self, stage: str, path: str) -> Path | None:
        """A file or folder of a stage's artifact, or None when there is none."""
        folder = self.folders.get(stage)
        return folder / path if folder is not None and (folder / path).exists() else None

    def table(self, name: str) -> pd.DataFrame:
        """tables/<name>.csv of the stage that has it, e.g. "04_causes"; an empty frame when there is none."""
        path = next((p for s in self.folders if (p := self.find(s, f"tables/{name}.csv"))), None)
        if path is None:
            return pd.DataFrame()
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str))
        texts = [c for c in TEXT if c in frame]
        frame[texts] = frame[texts].fillna("")
        return frame

    def figures(self, number: str) -> list[str]:
        """Names of the figures of the stage with that number, without ".png", sorted."""
        return sorted(p.stem for folder in self.folders.values() for p in folder.glob(f"figures/{number}_*.png"))

    def methods(self) -> list[str]:
        """Methods whose features were interpreted (05), in the order of the coders' table (03) where there is one."""
        folder = self.find("05_features", "features")
        if folder is None:
            return []
        present = {p.parent.name for p in folder.glob("*/features.parquet")}
        coders = self.find("03_train", "coders.csv")
        order = list(dict.fromkeys(pd.read_csv(coders)["method"].astype(str))) if coders else []
        return [m for m in order if m in present] + sorted(present - set(order))

    def features(self, method: str) -> pd.DataFrame:
        """features/<method>/features.parquet of 05."""
        return pd.read_parquet(self.folders["05_features"] / "features" / method / "features.parquet")

    def top_images(self, method: str) -> pd.DataFrame:
        """features/<method>/top_images.parquet of 05."""
        return pd.read_parquet(self.folders["05_features"] / "features" / method / "top_images.parquet")

    def verdicts(self, method: str) -> pd.DataFrame:
        """explanations/<method>/verdicts.parquet of 06; an empty frame with its columns when there is none."""
        path = self.find("06_interpret", f"explanations/{method}/verdicts.parquet")
        columns = ["feature", "judge", "phrase", "verdict", "category", "confidence", "detail"]
        frame = pd.DataFrame(columns=columns) if path is None else pd.read_parquet(path)
        return frame.fillna({c: "" for c in ("phrase", "verdict", "category", "detail") if c in frame})

    def collages(self, method: str) -> dict[int, Path]:
        """Feature number -> its collage of 05."""
        folder = self.find("05_features", f"features/{method}/collages")
        files = [] if folder is None else folder.glob("*.jpg")
        return dict(sorted((int(p.stem), p) for p in files if p.stem.isdigit()))
