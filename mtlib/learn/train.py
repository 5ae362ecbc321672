"""The one training loop, for every coder: seeded, validated, resumable to the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.coders import files, losses, upkeep
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.scaling import error_frame
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.learn.batches import Rows, Sampler, device_for, moments, set_statistics
from mtlib.learn.config import TrainConfig
from mtlib.learn.loop import HISTORY, Loop, finished
from mtlib.learn.optimiser import AdamW
from mtlib.learn.parallel import Group
from mtlib.learn.validation import as_json, calibrate, matched, validate
from mtlib.run import artifacts

PARTS = ("reconstruction", "penalty", "mono", "aux")  # of the loss
STEER_EVERY, STEER_RATE = 10, 0.25  # how often and how strongly the penalty follows the L0 target
SHOWN = {"loss": "4g", "fvu": "3f", "l0": "1f", "dead": "2f"}  # beside the progress bar, with their digits
MONO_RESTS = 0.999  # share of the L0 target below which MonoLoss rests


@contextlib.contextmanager
def products_in(coder: SparseCoder, precision: str) -> Iterator[None]:
    """Within the block, the products with the encoder and the decoder run in `precision`.

    bf16 rounds both factors and the product to bfloat16; biases, thresholds, selection, loss, gradients of the weights
    as the optimiser sees them and its state are float32. tf32 has an effect on CUDA devices only.

    Args: precision: float32, tf32 or bf16, as in TrainConfig.
    """
    before = torch.backends.cuda.matmul.allow_tf32, coder.compute_dtype
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    coder.compute_dtype = torch.bfloat16 if precision == "bf16" else None
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, coder.compute_dtype = before


def fingerprint(config: SparseCoderConfig, train_config: TrainConfig, x, t, rows_train, rows_val, y_scale) -> str:
    """Hash of everything that decides a fit's result: settings, row numbers, and 64 rows of each array."""
    h = hashlib.sha256(json.dumps([config.model_dump(), train_config.model_dump()], sort_keys=True).encode())
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
    tokens: int = 1,
) -> SparseCoder:
    """Train one coder; the best weights on the validation rows are kept.

    Args:
        config:     the coder. With train_config.l0_target its k are set to that L0.
        x:          (N, D) float array or memory map. t: (N, O) target, the same array for an autoencoder (or None).
        rows_train: rows of x to learn from. rows_val: rows that choose the best step and the frozen threshold.
        folder:     gets weights.safetensors, config.json, history.parquet, meta.json; an interrupted fit goes on from its
            checkpoint/ to the same bytes; a finished one with the same settings and data is loaded, not repeated.
        y_scale:    (O,) positive, for target_scale = "logit": see `logit_scale`.
        label:      name on the progress bar.
        group:      this process among several that train the coder together (jobs.py); the first one writes.
        tokens:     rows of x per image; rows_train then holds whole images, for train_config.batch_images.
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
    if finished(folder, key):
        return SparseCoder.from_pretrained(folder)
    loop = _Loop(config, x, t, rows_train, rows_val, train_config, y_scale, folder / "checkpoint", key, group, tokens)
    loop.run(label)
    loop.coder.most_dead = None
    if not loop.first:
        return loop.coder.cpu().eval()
    loop.finish(folder)
    result = as_json(loop.best_val) | {"matched": matched(loop.best_val["l0"], train_config.l0_target)}
    coder = loop.coder.cpu().eval()
    coder.save_pretrained(folder, train=train_config.model_dump(), result=result)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    artifacts.close(folder, fit=key)
    return coder


def summary(folder: str | Path) -> dict:
    """What a finished fit (verified) recorded: step, loss, fvu, l0 and dead of the best validation; matched (L0 within 5%)."""
    artifacts.verify(folder)
    return artifacts.json_object(Path(folder) / files.CONFIG)["result"]


def read_history(folder: str | Path) -> pd.DataFrame:
    """History of a fit: step, split (train: mean since the last row; val: exact), loss, fvu, l0, dead, lr."""
    return pd.read_parquet(Path(folder) / HISTORY)


class _Loop(Loop):
    """The steps of one coder."""

    def __init__(self, config, x, t, rows_train, rows_val, train_config, y_scale, folder, key, group, tokens):
        self.config = c = train_config
        self.group, self.device = group, device_for(c.device, group)
        self.coder = SparseCoder(config, seed=c.seed).to(self.device)
        self.coder.batch = group or losses.WHOLE
        self.loss = torch.compile(self.coder.loss) if c.compile and group is None else self.coder.loss
        self.x, self.val_x = Rows(x, rows_train, self.device), Rows(x, rows_val, self.device)
        same = t is x
        self.y = self.x if same else Rows(t, rows_train, self.device)
        self.val_y = self.val_x if same else Rows(t, rows_val, self.device)
        self.sampler = Sampler(len(rows_train), c.batch, c.seed, c.drop_last, tokens if c.batch_images else 1)
        set_statistics(self.coder, self.x, self.y, y_scale)
        self.spread = self._spread()
        self.logged = time.monotonic()
        named = self.coder.named_parameters()
        groups = dict(groups={"theta": c.theta_lr}, groups_decay=c.theta_decay)
        optimiser = AdamW(named, eps=c.eps, weight_decay=c.weight_decay, **groups)
        steps = c.steps or c.epochs * self.sampler.per_epoch
        sums = {"penalty_scale": torch.ones((), device=self.device), "steer": self._zero(), "n": self._zero()}
        often, first = (c.checkpoint_steps, c.checkpoint_seconds), group is None or group.rank == 0
        super().__init__(self.coder, optimiser, steps, sums, folder, key, *often, first)
        self._bound_dead(int(self._soon_dead()))

    def _zero(self) -> torch.Tensor:
        return torch.zeros((), device=self.device)

    def _spread(self) -> float:
        """Mean square deviation per element of the target in the units of the error: the denominator of the train FVU."""
        _, variance = moments(self.y)
        if not variance.any():
            raise ValueError("fit: the target is the same in every train row; there is nothing to learn")
        c = self.coder.config
        if c.by_row:
            y = torch.cat([error_frame(self.coder, block).target for block in self.y.chunks(8192, 65536)])
            return float(y.double().var(dim=0, correction=0).mean())
        return float(np.mean(variance / self.coder.y_scale.double().cpu().numpy() ** 2))

    def _record(self) -> dict[str, str]:
        last, shown = self.step == self.steps, {}
        if self.step % self.config.log_every == 0 or last:
            shown = self._log()
        if self.step % (self.config.val_every or self.sampler.per_epoch) == 0 or last:
            self._validate()
        return shown

    def _train_step(self) -> None:
        c, coder, parts = self.config, self.coder, self._parts(self.step)
        coder.train()
        self.optimiser.zero_grad()
        following = [*parts[1:], self._parts(self.step + 1)[0]]
        l0 = sum(self._add(*both, sum(map(len, parts))) for both in zip(parts, following, strict=True))
        if self.group is not None:
            self.group.sum_gradients(coder)
        if c.clip_when == "first":
            self._clip()
        upkeep.before_step(coder)
        if c.clip_when == "last":
            self._clip()
        self.optimiser.step(self._lr(self.step))
        upkeep.after_step(coder)
        if c.revive_every and self.step and self.step % c.revive_every == 0:
            self._revive()
        self._sum("n", torch.ones_like(l0))
        self._steer(l0)

    def _parts(self, step: int) -> list[np.ndarray]:
        return np.array_split(self.sampler(step), self.config.accumulate)

    def _add(self, positions: np.ndarray, following: np.ndarray, rows: int) -> torch.Tensor:
        """Add the gradients of a part of a batch of `rows` and what it measured. Returns: its part of the batch's L0."""
        later, mine = (p if self.group is None else self.group.share(p) for p in (following, positions))
        share, x = len(positions) / rows, self.x[mine]
        y = x if self.y is self.x else self.y[mine]
        for data in {self.x, self.y}:
            data.ahead(later)
        with products_in(self.coder, self.config.precision):
            loss, parts = self.loss(x, y, self.sums["penalty_scale"])
            (share * loss).backward()
        for name, value in parts.items():
            self._sum(name, value if name == "error" else share * value)
        self._sum("rows", torch.full_like(parts["l0"], len(positions)))
        return share * parts["l0"]

    def _sum(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, self._zero()) + value

    def _clip(self) -> None:
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.coder.parameters(), self.config.grad_clip)

    def _lr(self, step: int) -> float:
        return self.config.lr_at(step, self.steps, self.sampler.per_epoch)

    def _revive(self) -> None:
        """Dead latents start anew at rows of one batch that the seed alone decides; which ones, seed and step."""
        n, c = int(self.coder.dead.sum()), self.config
        batch = np.random.default_rng([c.seed, 0, self.sampler.n]).permutation(self.sampler.n)[: self.sampler.batch]
        if n:
            chosen = np.random.default_rng([c.seed, self.step]).choice(batch, n, replace=n > len(batch))
            upkeep.revive(self.coder, self.x[chosen])

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
        measured = {k: v / self.sums["n"] for k, v in self.sums.items() if k not in keep}
        measured |= {"dead": self.coder.dead.double().mean(), "all": self.sums["rows"], "soon": self._soon_dead()}
        read = torch.stack([v.double() for v in measured.values()]).tolist()  # at once
        mean = dict(zip(measured, read, strict=True))
        self._bound_dead(int(mean["soon"]))
        if not math.isfinite(mean["loss"]):
            raise ValueError(f"step {self.step}: the loss is {mean['loss']}; lower lr (now {self.config.lr})")
        row = {"step": self.step, "split": "train", "loss": mean["loss"]}
        row["fvu"] = mean["error"] / (mean["rows"] * self.coder.config.d_out * self.spread)
        row |= {"l0": mean["l0"], "dead": mean["dead"]}
        row |= {k: mean.get(k, 0.0) for k in PARTS}
        self.history.append(row | {"lr": self._lr(self.step - 1)})
        seconds, self.logged = time.monotonic() - self.logged, time.monotonic()
        rate = mean["all"] / max(seconds, 1e-9)
        self.sums = keep | {"n": self._zero()}
        shown = {name: f"{row[name]:.{digits}}" for name, digits in SHOWN.items()}
        return shown | {"rows/s": f"{rate:.3g}"}

    def _soon_dead(self) -> torch.Tensor:
        """(): how many latents can be dead before the next log."""
        rows = self.config.log_every * self.sampler.batch
        return (self.coder.rows_since_fired + rows >= self.coder.config.dead_after).sum()

    def _bound_dead(self, n: int) -> None:
        """Let no later step ask the device how many latents are dead; in steps of 256, so that shapes seldom change."""
        self.coder.most_dead = min(self.coder.n_latents, -(-n // 256) * 256)

    def _validate(self) -> None:
        if self.first:
            calibrate(self.coder, self.val_x, self.config.l0_target)
            row = {"step": self.step} | validate(self.coder, self.val_x, self.val_y)
            self.history.append({"step": self.step, "split": "val"} | row)
            rank = [(not matched(v["l0"], self.config.l0_target), v["loss"]) for v in (row, self.best_val or row)]
            if self.best_val is None or rank[0] < rank[1]:  # a matched L0 before an unmatched, then the lower loss
                self._keep_best(row)
        if self.group is not None:
            self.group.from_first(self.coder.threshold)
