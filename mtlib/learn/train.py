"""The one training loop, for every coder: seeded, validated, resumable to the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from mtlib.coders import files
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.learn import checkpoint, parallel
from mtlib.learn.adamw import AdamW
from mtlib.learn.batches import Rows, Sampler, device_for, moments
from mtlib.learn.parallel import Group
from mtlib.learn.precision import products_in
from mtlib.learn.scaling import set_statistics
from mtlib.learn.train_config import TrainConfig, lr_at
from mtlib.learn.validate import better, calibrate, matched, validate
from mtlib.run.artifacts import atomic

HISTORY = "history.parquet"
PARTS = ("reconstruction", "penalty", "mono", "aux")  # of the loss
STEER_EVERY, STEER_RATE = 10, 0.25  # how often and how strongly the penalty follows the L0 target
MONO_RESTS = 0.999  # share of the L0 target below which MonoLoss rests


def fingerprint(config: SparseCoderConfig, train_config: TrainConfig, x, t, rows_train, rows_val, y_scale) -> str:
    """Hash of everything that decides a fit's result: settings, row numbers, and 64 rows of each array."""
    h = hashlib.sha256(json.dumps([asdict(config), asdict(train_config)], sort_keys=True).encode())
    for rows in (rows_train, rows_val):
        h.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
        sample = rows[:: max(1, len(rows) // 64)]
        for array in (x, t):
            h.update(str(array.shape).encode() + np.ascontiguousarray(array[sample], dtype=np.float32).tobytes())
    h.update(b"" if y_scale is None else np.ascontiguousarray(y_scale, dtype=np.float64).tobytes())
    return h.hexdigest()


def fit(
    config: SparseCoderConfig,
    x,
    t,
    rows_train: np.ndarray,
    rows_val: np.ndarray,
    train_config: TrainConfig,
    folder: str | Path,
    y_scale: np.ndarray | None = None,
    label: str = "",
    group: Group | None = None,
) -> SparseCoder:
    """Train one coder; the best weights on the validation rows are kept.

    Args:
        config:     the coder. With train_config.l0_target its k are set to that L0.
        x:          (N, D) float array or memory map. t: (N, O) target, the same array for an autoencoder (or None).
        rows_train: rows of x to learn from. rows_val: rows that choose the best step and the frozen threshold.
        folder:     gets weights.safetensors, config.json, history.parquet; an interrupted fit goes on from its
            checkpoint/ to the same bytes; a finished one with the same settings and data is loaded, not repeated.
        y_scale:    (O,) positive, for target_scale = "logit": see `logit_scale`.
        label:      name on the progress bar.
        group:      this process among several that train the coder together (jobs.py); the first one writes.
    Returns: the coder, in eval mode. `summary(folder)` and `read_history(folder)` tell how it went.
    Raises: ValueError for shapes that do not fit, empty row lists, or a loss that is not finite.
    """
    folder = Path(folder)
    t = x if t is None or config.target == "x" else t
    if x.shape != (len(x), config.d_in) or t.shape != (len(x), config.d_out):
        expected = f"({len(x)}, {config.d_in}) and ({len(x)}, {config.d_out})"
        raise ValueError(f"fit: x and target have shapes {tuple(x.shape)} and {tuple(t.shape)}, expected {expected}")
    if not len(rows_train) or not len(rows_val):
        raise ValueError(f"fit: {len(rows_train)} train rows and {len(rows_val)} val rows; both must be > 0")
    config = config.with_l0(train_config.l0_target) if train_config.l0_target else config
    key = fingerprint(config, train_config, x, t, rows_train, rows_val, y_scale)
    if _finished(folder, key):
        return SparseCoder.from_pretrained(folder)
    loop = _Loop(config, x, t, rows_train, rows_val, train_config, y_scale, folder / "checkpoint", key, group)
    loop.run(label)
    if not loop.first:
        return loop.coder.cpu().eval()
    history = pd.DataFrame(loop.history)
    with atomic(folder / HISTORY) as tmp:
        history.to_parquet(tmp, index=False)
    coder = loop.coder
    coder.load_state_dict(loop.best)
    result = loop.best_val | {"matched": matched(loop.best_val["l0"], train_config.l0_target or None)}
    coder.cpu().eval().save_pretrained(folder, fit=key, train=asdict(train_config), result=result)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return coder


def _finished(folder: Path, key: str) -> bool:
    needed = [folder / name for name in (files.WEIGHTS, files.CONFIG, HISTORY)]
    if not all(path.is_file() for path in needed):
        return False
    return json.loads(needed[1].read_text(encoding="utf-8")).get("fit") == key


def summary(folder: str | Path) -> dict:
    """What a finished fit recorded: step, loss, fvu, l0 and dead of the best validation; matched (L0 within 5%)."""
    return json.loads((Path(folder) / files.CONFIG).read_text(encoding="utf-8"))["result"]


def read_history(folder: str | Path) -> pd.DataFrame:
    """History of a fit: step, split (train: mean since the last row; val: exact), loss, fvu, l0, dead, lr."""
    return pd.read_parquet(Path(folder) / HISTORY)


class _Loop:
    """State of one fit: everything here is saved in a checkpoint or follows from the arguments."""

    def __init__(self, config, x, t, rows_train, rows_val, train_config, y_scale, folder, key, group):
        self.config, self.folder, self.key = train_config, folder, key
        self.group, self.first = group, group is None or group.rank == 0
        self.device = device_for(train_config.device, group)
        self.coder = SparseCoder(config, seed=train_config.seed).to(self.device)
        self.loss = torch.compile(self.coder.loss) if train_config.compile and group is None else self.coder.loss
        self.x, self.val_x = Rows(x, rows_train, self.device), Rows(x, rows_val, self.device)
        same = t is x
        self.y = self.x if same else Rows(t, rows_train, self.device)
        self.val_y = self.val_x if same else Rows(t, rows_val, self.device)
        self.sampler = Sampler(len(rows_train), train_config.batch, train_config.seed)
        self.steps = train_config.steps or train_config.epochs * self.sampler.per_epoch
        set_statistics(self.coder, self.x, self.y, y_scale)
        self.spread = self._spread()
        self.optimiser = self._optimiser()
        self.sums = {"penalty_scale": torch.ones((), device=self.device), "steer": self._zero(), "n": self._zero()}
        self.history: list[dict] = []
        self.best, self.best_val, self.step = None, None, 0
        self._resume()

    def _zero(self) -> torch.Tensor:
        return torch.zeros((), device=self.device)

    def _spread(self) -> float:
        """Mean square deviation per element of the target in the coder's units: the denominator of the train FVU."""
        _, variance = moments(self.y)
        if not variance.any():
            raise ValueError("fit: the target is the same in every train row; there is nothing to learn")
        if self.coder.config.target_scale == "rows":
            y = torch.cat([self.coder._targets(block) for block in self.y.chunks(8192, 65536)])
            return float(y.double().var(dim=0, correction=0).mean())
        return float(np.mean(variance / self.coder.y_scale.double().cpu().numpy() ** 2))

    def _optimiser(self) -> AdamW:
        c = self.config
        named = self.coder.named_parameters()
        return AdamW(named, (c.beta1, c.beta2), c.eps, c.weight_decay, groups={"theta": c.theta_lr})

    def _resume(self) -> None:
        saved = checkpoint.load(self.folder)
        if saved is None:
            return
        tensors, record = saved
        if record["key"] != self.key:
            print(f"{self.folder}: checkpoint of other settings or data; training starts anew")
            return
        checkpoint.restore(tensors, self.coder, self.optimiser, self.device)
        self.sums = checkpoint.part(tensors, "sums", self.device)
        self.best = checkpoint.part(tensors, "best", self.device) or None
        self.history, self.best_val, self.step = record["history"], record["best_val"], record["step"]

    def _save(self) -> None:
        record = {"key": self.key, "step": self.step, "history": self.history, "best_val": self.best_val}
        checkpoint.save(self.folder, self.coder, self.optimiser, self.sums, self.best, record)

    def run(self, label: str) -> None:
        c = self.config
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            desc=label,
            file=sys.stdout,
            mininterval=5.0,
            unit="step",
            disable=not self.first,
        )
        saved = self.logged = time.monotonic()
        val_every = c.val_every or self.sampler.per_epoch
        while self.step < self.steps:
            self._train_step()
            self.step += 1
            if self.step % c.log_every == 0 or self.step == self.steps:
                bar.set_postfix(self._log(), refresh=False)
            if self.step % val_every == 0 or self.step == self.steps:
                self._validate()
            bar.update()
            due = c.checkpoint_steps and self.step % c.checkpoint_steps == 0
            if self.first and (due or time.monotonic() - saved > c.checkpoint_seconds):
                self._save()
                saved = time.monotonic()
        bar.close()

    def _train_step(self) -> None:
        c, coder = self.config, self.coder
        positions = self.sampler(self.step)
        mine = positions if self.group is None else self.group.share(positions)
        x = self.x[mine]
        y = x if self.y is self.x else self.y[mine]
        coder.train()
        scale = self.sums["penalty_scale"]
        with products_in(coder, c.precision):
            if self.group is None:
                loss, parts = self.loss(x, y, scale)
            else:
                loss, parts = parallel.loss(coder, x, y, scale, len(positions), self.group)
            self.optimiser.zero_grad()
            loss.backward()
        if self.group is not None:
            self.group.sum_gradients(coder)
            loss = sum(parts[k] for k in PARTS if k in parts)
        if c.grad_clip:
            torch.nn.utils.clip_grad_norm_(coder.parameters(), c.grad_clip)
        self.optimiser.step(lr_at(self.step, self.steps, c))
        coder.after_step()
        for name, value in (parts | {"loss": loss.detach(), "n": torch.ones_like(loss)}).items():
            self.sums[name] = self.sums.get(name, self._zero()) + value
        self._steer(parts["l0"])

    def _steer(self, l0: torch.Tensor) -> None:
        """Hold the train L0 at its target. Without a selection: raise or lower the penalty.

        With one, the L0 cannot be too high, but MonoLoss can silence more latents than the selection does: it rests for
        the next step whenever it has.
        """
        if not self.config.l0_target:
            return
        if self.coder.config.selection != "none":
            self.sums["penalty_scale"] = (l0 >= MONO_RESTS * self.config.l0_target).to(l0.dtype)
            return
        self.sums["steer"] = self.sums["steer"] + l0 / STEER_EVERY
        if (self.step + 1) % STEER_EVERY == 0:
            off = torch.log(self.sums["steer"].clamp_min(1e-3) / self.config.l0_target).clamp(-1, 1)
            self.sums["penalty_scale"] = self.sums["penalty_scale"] * torch.exp(STEER_RATE * off)
            self.sums["steer"] = self._zero()

    def _log(self) -> dict[str, str]:
        """One history row of the steps since the last one; the only place where train numbers leave the device."""
        keep = {k: self.sums[k] for k in ("penalty_scale", "steer")}
        mean = {k: float(v / self.sums["n"]) for k, v in self.sums.items() if k not in keep}
        if not math.isfinite(mean["loss"]):
            raise ValueError(f"step {self.step}: the loss is {mean['loss']}; lower lr (now {self.config.lr})")
        row = {"step": self.step, "split": "train", "loss": mean["loss"]}
        row["fvu"] = mean["error"] / (self.sampler.batch * self.coder.config.d_out * self.spread)
        row |= {"l0": mean["l0"], "dead": float(self.coder.dead.double().mean())}
        row |= {k: mean.get(k, 0.0) for k in PARTS}
        self.history.append(row | {"lr": lr_at(self.step - 1, self.steps, self.config)})
        seconds, self.logged = time.monotonic() - self.logged, time.monotonic()
        rate = float(self.sums["n"]) * self.sampler.batch / max(seconds, 1e-9)
        self.sums = keep | {"n": self._zero()}
        return {
            "loss": f"{row['loss']:.4g}",
            "fvu": f"{row['fvu']:.3f}",
            "l0": f"{row['l0']:.1f}",
            "dead": f"{row['dead']:.2f}",
            "rows/s": f"{rate:.3g}",
        }

    def _validate(self) -> None:
        if self.first:
            self._measure()
        if self.group is not None:
            self.group.from_first(self.coder.threshold)

    def _measure(self) -> None:
        calibrate(self.coder, self.val_x, self.config.l0_target or None)
        row = {"step": self.step, "split": "val"} | validate(self.coder, self.val_x, self.val_y)
        self.history.append(row)
        if better(row, self.best_val, self.config.l0_target or None):
            self.best_val = {k: v for k, v in row.items() if k != "split"}
            self.best = {k: v.clone() for k, v in self.coder.state_dict().items()}
