"""Training the AlexNet-Transformer of embed/vision.py from scratch: seeded, validated, resumable to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mtlib.coders import files
from mtlib.coders.checked import check
from mtlib.embed import vision
from mtlib.embed.store import Data
from mtlib.embed.vision import AlexNetTransformer, VisionConfig
from mtlib.learn import checkpoint
from mtlib.learn.adamw import AdamW
from mtlib.learn.batches import Sampler, device_for
from mtlib.learn.train_config import TrainConfig, lr_at
from mtlib.run.artifacts import atomic

HISTORY = "history.parquet"
VAL_BATCH = 64


@dataclass(frozen=True)
class VisionTraining:
    """How the vision model is trained. Raises ValueError naming the field, its value and its range.

    Published: 10 epochs, the best weights kept. Ours: AdamW with warm-up and cosine decay, images mirrored at random.
    """

    epochs: int = 10
    batch: int = 32
    lr: float = 3e-4
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    seed: int = 0
    device: str = "auto"
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int = 0  # 0: by time only

    def __post_init__(self):
        for name in ("epochs", "seed", "checkpoint_steps"):
            check(self, name, getattr(self, name) >= (name == "epochs"), ">= 1" if name == "epochs" else ">= 0")
        check(self, "batch", self.batch >= 2, ">= 2")
        for name in ("lr", "checkpoint_seconds"):
            check(self, name, 0 < getattr(self, name) < float("inf"), "finite and > 0")
        check(self, "weight_decay", 0 <= self.weight_decay < float("inf"), "finite and >= 0")
        check(self, "warmup", 0 <= self.warmup < 1, "between 0 and 1 (not 1)")


def fit_vision(
    config: VisionConfig,
    pixels: np.ndarray,
    labels: np.ndarray,
    rows_train: np.ndarray,
    rows_val: np.ndarray,
    training: VisionTraining,
    folder: Path,
    scratch: Path | None = None,
) -> tuple[AlexNetTransformer, pd.DataFrame]:
    """Train; the weights of the epoch with the lowest validation loss are kept.

    Args:
        config:     sizes of the model.
        pixels:     (N, 3, side, side) uint8, an array or memory map.
        labels:     (N,) int, 0 .. n_classes - 1 on the rows that are used.
        rows_train: images to learn from. rows_val: images that choose the epoch.
        folder:     gets weights.safetensors, config.json, history.parquet; a finished fit of the same settings and images
            is loaded, not repeated.
        scratch:    where checkpoints are kept while it trains; None: folder/checkpoint. A killed fit goes on from there.
    Returns: the model in eval mode on its device; history: epoch, train_loss and val_loss in nats, train_accuracy
        (with dropout on) and val_accuracy, lr.
    Raises: ValueError for empty row lists, labels out of range, or a loss that is not finite.
    """
    if len(rows_train) < 2 or not len(rows_val):
        raise ValueError(f"fit_vision: {len(rows_train)} train images and {len(rows_val)} val images; need 2 and 1")
    used = labels[np.concatenate([rows_train, rows_val])]
    if used.min() < 0 or used.max() >= config.n_classes:
        raise ValueError(f"fit_vision: labels {used.min()} .. {used.max()}, expected 0 .. {config.n_classes - 1}")
    key = _fingerprint(config, training, pixels, labels, rows_train, rows_val)
    if _finished(folder, key):
        return load_vision(folder, training.device), pd.read_parquet(folder / HISTORY)
    scratch = scratch or folder / "checkpoint"
    with torch.random.fork_rng():  # every step draws from a seed of its own
        loop = _Loop(config, pixels, labels, rows_train, rows_val, training, scratch, key)
        loop.run()
    history = pd.DataFrame(loop.history)
    with atomic(folder / HISTORY) as tmp:
        history.to_parquet(tmp, index=False)
    loop.model.load_state_dict(loop.best)
    files.save_model(folder, loop.model, config, fit=key, training=asdict(training), best=loop.best_val)
    shutil.rmtree(scratch, ignore_errors=True)
    return loop.model.eval(), history


def train_and_read(
    data: Data,
    labels: np.ndarray,
    rows_train: np.ndarray,
    rows_val: np.ndarray,
    config: VisionConfig,
    training: VisionTraining,
    out: Path,
) -> tuple[np.ndarray, pd.DataFrame, dict]:
    """All that notebook 02 does for a vision model: pixels, training, out/vision/, and the tokens of a block in out/x.npy.

    Args: data: one row per image. labels, rows_train, rows_val, config, training: as `fit_vision`. out: the stage's folder;
        what is needed only while it works stands in its checkpoint/ and shards/.
    Returns: logits, (N, n_classes), or (N,) of the second of two classes; history; the facts of x (see `write_tokens`).
    """

    def bar(text: str) -> tqdm:
        return tqdm(total=len(data.x), desc=text, unit="images", file=sys.stdout, mininterval=5.0)

    with bar("pixels") as done:
        pixels = vision.read_pixels(data, out / "shards" / "pixels.npy", config.side, progress=done.update)
    folder = out / "vision"
    model, history = fit_vision(config, pixels, labels, rows_train, rows_val, training, folder, out / "checkpoint")
    with bar("tokens") as done:
        logits, facts = vision.write_tokens(model, pixels, out / "x.npy", progress=done.update)
    return logits if config.n_classes > 2 else logits[:, 1] - logits[:, 0], history, facts


def load_vision(folder: Path, device: str = "auto") -> AlexNetTransformer:
    """A model saved by `fit_vision`, in eval mode. Raises: ValueError when the weights do not fit or are not finite."""
    model = AlexNetTransformer(files.read_config(folder, VisionConfig))
    files.load_weights(folder, model)
    return model.to(device_for(device)).eval()


def _fingerprint(config, training, pixels, labels, rows_train, rows_val) -> str:
    """Hash of everything that decides the result: settings, rows, labels, and 64 of the images."""
    h = hashlib.sha256(json.dumps([asdict(config), asdict(training), list(pixels.shape)]).encode())
    for rows in (rows_train, rows_val):
        h.update(np.ascontiguousarray(rows, np.int64).tobytes() + labels[rows].astype(np.int64).tobytes())
        h.update(np.ascontiguousarray(pixels[rows[:: max(1, len(rows) // 32)]]).tobytes())
    return h.hexdigest()


def _finished(folder: Path, key: str) -> bool:
    needed = [folder / name for name in (files.WEIGHTS, files.CONFIG, HISTORY)]
    return all(p.is_file() for p in needed) and json.loads(needed[1].read_text(encoding="utf-8")).get("fit") == key


class _Loop:
    """State of one fit: everything here is saved in a checkpoint or follows from the arguments."""

    def __init__(self, config, pixels, labels, rows_train, rows_val, training, scratch, key):
        self.training, self.scratch, self.key = training, scratch, key
        self.pixels, self.labels, self.rows_train, self.rows_val = pixels, labels, rows_train, rows_val
        self.device = device_for(training.device)
        self.model = AlexNetTransformer(config, training.seed).to(self.device)
        self.optimiser = AdamW(self.model.named_parameters(), weight_decay=training.weight_decay)
        self.sampler = Sampler(len(rows_train), training.batch, training.seed)
        self.steps = training.epochs * self.sampler.per_epoch
        self.schedule = TrainConfig(lr=training.lr, schedule="cosine", final_lr=0.01, warmup=training.warmup)
        self.sums, self.best, self.best_val = self._zero(), None, None
        self.history: list[dict] = []
        self.step = 0
        saved = checkpoint.load(scratch)
        if saved is not None and saved[1]["key"] == key:
            tensors, record = saved
            checkpoint.restore(tensors, self.model, self.optimiser, self.device)
            self.sums = checkpoint.part(tensors, "sums", self.device)
            self.best = checkpoint.part(tensors, "best", self.device) or None
            self.history, self.best_val, self.step = record["history"], record["best_val"], record["step"]

    def _zero(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=self.device) for name in ("loss", "right", "n")}

    def _batch(self, rows: np.ndarray, mirrored: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """(pixels uint8, labels) of some rows on the device."""
        pixels = np.array(self.pixels[rows])
        if mirrored is not None:
            pixels[mirrored] = pixels[mirrored, ..., ::-1]
        target = torch.from_numpy(self.labels[rows].astype(np.int64))
        return torch.from_numpy(pixels).to(self.device), target.to(self.device)

    def run(self) -> None:
        bar = tqdm(total=self.steps, initial=self.step, desc="vision", file=sys.stdout, mininterval=5.0, unit="step")
        saved = time.monotonic()
        while self.step < self.steps:
            self._train_step()
            self.step += 1
            bar.update()
            if self.step % self.sampler.per_epoch == 0:
                bar.set_postfix(self._end_of_epoch(), refresh=False)
            due = self.training.checkpoint_steps and self.step % self.training.checkpoint_steps == 0
            if due or time.monotonic() - saved > self.training.checkpoint_seconds:
                record = {"key": self.key, "step": self.step, "history": self.history, "best_val": self.best_val}
                checkpoint.save(self.scratch, self.model, self.optimiser, self.sums, self.best, record)
                saved = time.monotonic()
        bar.close()

    def _train_step(self) -> None:
        seed = np.random.default_rng([self.training.seed, self.step])  # mirrors and dropout of this step
        torch.manual_seed(int(seed.integers(2**62)))
        rows = self.rows_train[self.sampler(self.step)]
        pixels, target = self._batch(rows, seed.random(len(rows)) < 0.5)
        logits = self.model.train()(pixels)
        loss = F.cross_entropy(logits, target)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(lr_at(self.step, self.steps, self.schedule))
        new = {"loss": loss.detach() * len(rows), "right": (logits.argmax(1) == target).sum(), "n": len(rows)}
        self.sums = {name: self.sums[name] + new[name] for name in self.sums}

    @torch.inference_mode()
    def _validation(self) -> tuple[float, float]:
        """Mean loss and accuracy of the validation images, exact."""
        self.model.eval()
        loss = right = 0.0
        for start in range(0, len(self.rows_val), VAL_BATCH):
            pixels, target = self._batch(self.rows_val[start : start + VAL_BATCH])
            logits = self.model(pixels)
            loss += float(F.cross_entropy(logits.double(), target, reduction="sum"))
            right += int((logits.argmax(1) == target).sum())
        return loss / len(self.rows_val), right / len(self.rows_val)

    def _end_of_epoch(self) -> dict[str, str]:
        epoch, lr = self.step // self.sampler.per_epoch, lr_at(self.step - 1, self.steps, self.schedule)
        n = float(self.sums["n"])
        train = {"loss": float(self.sums["loss"]) / n, "accuracy": float(self.sums["right"]) / n}
        loss, accuracy = self._validation()
        if not np.isfinite([train["loss"], loss]).all():
            raise ValueError(
                f"epoch {epoch}: the loss is {train['loss']}, of val {loss}; lower lr (now {self.training.lr})"
            )
        row = {"epoch": epoch, "train_loss": train["loss"], "val_loss": loss}
        self.history.append(row | {"train_accuracy": train["accuracy"], "val_accuracy": accuracy, "lr": lr})
        self.sums = self._zero()
        if self.best_val is None or loss < self.best_val["loss"]:
            self.best_val = {"epoch": epoch, "loss": loss, "accuracy": accuracy}
            self.best = {k: v.clone() for k, v in self.model.state_dict().items()}
        return {"loss": f"{train['loss']:.3f}", "val loss": f"{loss:.3f}", "val accuracy": f"{accuracy:.3f}"}
