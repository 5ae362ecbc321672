"""A fit as steps that can be interrupted: everything it holds stands in one safetensors file, from which it goes on to
the same bytes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from mtlib.coders.files import save_tensors, tensors_hash
from mtlib.run import artifacts

NAME, HISTORY = "state.safetensors", "history.parquet"


def save(folder: Path, parts: dict[str, dict[str, Tensor]], record: dict) -> None:
    """Write state.safetensors atomically: tensors under the names of their parts, and JSON values (floats exactly)."""
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    tensors["rng"] = torch.get_rng_state()
    record = artifacts.sealed(record | {"tensors": tensors_hash(tensors)})
    save_tensors(folder / NAME, tensors, {"record": json.dumps(record)})


def load(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """Tensors by name and the record of a checkpoint, or None when there is none.

    Raises: ValueError naming the file when it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            record = artifacts.unsealed(json.loads(f.metadata()["record"]))
        if record.pop("tensors") != tensors_hash(tensors):
            raise ValueError("sha256 mismatch")
        return tensors, record
    except (SafetensorError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: damaged checkpoint ({e}); delete {folder} and train again") from e


def finished(folder: Path, key: str) -> bool:
    """Whether a fit of these settings and data is done in `folder`, and undamaged."""
    return artifacts.standing(folder, "it is trained again").get("fit") == key


class Loop:
    """State and course of a fit; a subclass says what a step is and what is recorded after it.

    Everything here is saved in a checkpoint or follows from the arguments.

    Args:
        model, optimiser: on the device.
        steps:   how many there are. sums: running tensors.
        folder:  of the checkpoint. key: of settings and data; another one's checkpoint is left alone.
        every_steps, every_seconds: between checkpoints; 0 steps: by time only.
        first:   whether this process writes.
    """

    def __init__(self, model, optimiser, steps, sums, folder, key, every_steps, every_seconds, first=True):
        self.model, self.optimiser, self.steps, self.sums = model, optimiser, steps, sums
        self.folder, self.key, self.first = folder, key, first
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.history: list[dict] = []
        self.best, self.best_val, self.step = None, None, 0
        self._resume()

    def _train_step(self) -> None:
        raise NotImplementedError

    def _record(self) -> dict[str, str]:
        """What is measured after a step; returns numbers for the progress bar, {} most of the time."""
        raise NotImplementedError

    def run(self, label: str) -> None:
        """All steps that are left."""
        look = dict(desc=label, file=sys.stdout, mininterval=5.0, unit="step", disable=not self.first)
        bar = tqdm(total=self.steps, initial=self.step, **look)
        saved = time.monotonic()
        while self.step < self.steps:
            self._train_step()
            self.step += 1
            if shown := self._record():
                bar.set_postfix(shown, refresh=False)
            bar.update()
            due = self.every_steps and self.step % self.every_steps == 0
            if self.first and (due or time.monotonic() - saved > self.every_seconds):
                parts = {"model": self.model.state_dict(), "best": self.best or {}, "sums": self.sums}
                record = {"key": self.key, "step": self.step, "history": self.history, "best_val": self.best_val}
                save(self.folder, parts | {"optimiser": self.optimiser.state}, record)
                saved = time.monotonic()
        bar.close()

    def finish(self, folder: Path) -> pd.DataFrame:
        """Put the best weights into the model and write history.parquet to `folder`. Returns: the history."""
        history = pd.DataFrame(self.history)
        (folder / artifacts.META).unlink(missing_ok=True)  # of another fit
        with artifacts.atomic(folder / HISTORY) as tmp:
            history.to_parquet(tmp, index=False)
        self.model.load_state_dict(self.best)
        return history

    def _keep_best(self, measured: dict) -> None:
        self.best_val, self.best = measured, {k: v.clone() for k, v in self.model.state_dict().items()}

    def _resume(self) -> None:
        saved = load(self.folder)
        if saved is None:
            return
        tensors, record = saved
        if record["key"] != self.key:
            print(f"{self.folder}: checkpoint of other settings or data; training starts anew")
            return
        device = next(self.model.parameters()).device
        torch.set_rng_state(tensors.pop("rng"))
        parts: dict[str, dict[str, Tensor]] = {"best": {}}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = value.to(device)
        self.model.load_state_dict(parts["model"])
        self.optimiser.load(parts["optimiser"])
        self.sums, self.best = parts["sums"], parts["best"] or None
        self.history, self.best_val, self.step = record["history"], record["best_val"], record["step"]
