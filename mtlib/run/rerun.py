"""What an interrupted `--from` has done so far, so that the same command goes on from there.

Without this record, stages that had run again would run once more, and the unfinished one would lose its checkpoints.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mtlib.run.artifacts import write_json

BEGUN, FINISHED = "begun", "finished"


class Rerun:
    """The stages that run again even if nothing changed; kept in runs/<run>/rerun.json until the whole run is done.

    Args:
        run_dir: folder of the run.
        stages:  their names; empty without `--from`.
    """

    def __init__(self, run_dir: Path, stages: set[str]):
        self.path, self.stages = run_dir / "rerun.json", sorted(stages)
        self.state: dict[str, str] = {}  # folder name -> BEGUN | FINISHED
        if stages and self.path.is_file():
            try:
                before = json.loads(self.path.read_text(encoding="utf-8"))
                self.state = before["state"] if before["stages"] == self.stages else {}
            except (ValueError, KeyError, TypeError):  # torn: it starts over
                pass

    def due(self, stage: str, folder: Path) -> bool:
        """Whether a stage runs although its artifact may stand."""
        return stage in self.stages and self.state.get(folder.name) != FINISHED

    def begin(self, stage: str, folder: Path, part: Path) -> None:
        """Before a stage runs: what an earlier run left in `part` goes, what this one left stays."""
        if self.due(stage, folder) and folder.name not in self.state:
            shutil.rmtree(part, ignore_errors=True)
            self._write(folder, BEGUN)

    def finish(self, stage: str, folder: Path) -> None:
        """After a stage has finished."""
        if stage in self.stages:
            self._write(folder, FINISHED)

    def end(self) -> None:
        """After the last stage: the next `--from` starts anew."""
        self.path.unlink(missing_ok=True)

    def _write(self, folder: Path, state: str) -> None:
        self.state[folder.name] = state
        write_json(self.path, {"stages": self.stages, "state": self.state})
