"""The AlexNet-Transformer of embed/vision.py over a run's images: their pixels, its training from random weights (seeded,
validated, resumable to the same bytes), and the tokens that it makes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mtlib.coders import files
from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.store import Data, open_array, write_rows
from mtlib.embed.vision import AlexNetTransformer, VisionConfig, forward_tokens, load_alexnet, square
from mtlib.learn.batches import Sampler, device_for
from mtlib.learn.config import TrainConfig, VisionTraining
from mtlib.learn.loop import HISTORY, Loop, finished
from mtlib.learn.optimiser import AdamW
from mtlib.run.artifacts import ArtifactError, atomic, close, json_hash, standing

AT_A_TIME, BATCH = 256, 64  # images that are decoded, that the model sees when it does not learn


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
        folder:     gets weights.safetensors, config.json, history.parquet, meta.json; a finished fit of the same settings
            and images is loaded, not repeated.
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
    if finished(folder, key):
        return load_vision(folder, training.device), pd.read_parquet(folder / HISTORY)
    scratch = scratch or folder / "checkpoint"
    with torch.random.fork_rng():  # every step draws from a seed of its own
        loop = _Loop(config, pixels, labels, rows_train, rows_val, training, scratch, key)
        loop.run("vision")
    history = loop.finish(folder)
    files.save_model(folder, loop.model, config, training=training.model_dump(), best=loop.best_val)
    shutil.rmtree(scratch, ignore_errors=True)
    close(folder, fit=key)
    return loop.model.eval(), history


def load_vision(folder: Path, device: str = "auto") -> AlexNetTransformer:
    """A model saved by `fit_vision`, in eval mode on the device. Raises: ValueError when the weights do not fit."""
    return load_alexnet(folder).to(device_for(device)).eval()


def take_vision(checkpoint: str, root: Path, n_classes: int, layer: int, folder: Path) -> AlexNetTransformer:
    """A published checkpoint (`load_alexnet`; a relative path starts from `root`) in place of a fit, saved into `folder`.

    Args: n_classes: of the images. layer: the block to read.
    Raises: ValueError when it does not fit, or has another number of classes than the images.
    """
    path = root / Path(checkpoint).expanduser()
    model = load_alexnet(path)
    if model.config.n_classes != n_classes:
        raise ValueError(f"{path.name}: {model.config.n_classes} classes, the images have {n_classes}")
    model.config = model.config.with_(layer=layer)
    files.save_model(folder, model, model.config, checkpoint=path.name)
    return load_vision(folder)


def _fingerprint(config, training, pixels, labels, rows_train, rows_val) -> str:
    """Hash of everything that decides the result: settings, rows, labels, and 64 of the images."""
    h = hashlib.sha256(json.dumps([config.model_dump(), training.model_dump(), list(pixels.shape)]).encode())
    for rows in (rows_train, rows_val):
        h.update(np.ascontiguousarray(rows, np.int64).tobytes() + labels[rows].astype(np.int64).tobytes())
        h.update(np.ascontiguousarray(pixels[rows[:: max(1, len(rows) // 32)]]).tobytes())
    return h.hexdigest()


class _Loop(Loop):
    """The steps of the vision model."""

    def __init__(self, config, pixels, labels, rows_train, rows_val, training, scratch, key):
        self.training = t = training
        self.pixels, self.labels, self.rows_train, self.rows_val = pixels, labels, rows_train, rows_val
        self.device = device_for(t.device)
        model = AlexNetTransformer(config, t.seed).to(self.device)
        optimiser = AdamW(model.named_parameters(), weight_decay=t.weight_decay)
        self.sampler = Sampler(len(rows_train), t.vision_batch, t.seed, t.drop_last)
        self.schedule = TrainConfig(lr=t.vision_lr, schedule=t.schedule, final_lr=0.01, warmup=t.warmup)
        steps = t.vision_epochs * self.sampler.per_epoch
        super().__init__(model, optimiser, steps, self._zero(), scratch, key, t.checkpoint_steps, t.checkpoint_seconds)

    def _zero(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=self.device) for name in ("loss", "right", "n")}

    def _batch(self, rows: np.ndarray, mirrored: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """(pixels uint8, labels) of some rows on the device."""
        pixels = np.array(self.pixels[rows])
        if mirrored is not None:
            pixels[mirrored] = pixels[mirrored, ..., ::-1]
        target = torch.from_numpy(self.labels[rows].astype(np.int64))
        return torch.from_numpy(pixels).to(self.device), target.to(self.device)

    def _record(self) -> dict[str, str]:
        return {} if self.step % self.sampler.per_epoch else self._end_of_epoch()

    def _train_step(self) -> None:
        seed = np.random.default_rng([self.training.seed, self.step])  # mirrors and dropout of this step
        torch.manual_seed(int(seed.integers(2**62)))
        rows = self.rows_train[self.sampler(self.step)]
        pixels, target = self._batch(rows, seed.random(len(rows)) < 0.5 if self.training.mirrored else None)
        logits = self.model.train()(pixels)
        loss = F.cross_entropy(logits, target)
        self.optimiser.zero_grad()
        loss.backward()
        if self.training.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.grad_clip)
        self.optimiser.step(self.schedule.lr_at(self.step, self.steps))
        new = {"loss": loss.detach() * len(rows), "right": (logits.argmax(1) == target).sum(), "n": len(rows)}
        self.sums = {name: self.sums[name] + new[name] for name in self.sums}

    @torch.inference_mode()
    def _validation(self) -> tuple[float, float]:
        """Mean loss and accuracy of the validation images, exact."""
        self.model.eval()
        loss = right = 0.0
        for start in range(0, len(self.rows_val), BATCH):
            pixels, target = self._batch(self.rows_val[start : start + BATCH])
            logits = self.model(pixels)
            loss += float(F.cross_entropy(logits.double(), target, reduction="sum"))
            right += int((logits.argmax(1) == target).sum())
        return loss / len(self.rows_val), right / len(self.rows_val)

    def _end_of_epoch(self) -> dict[str, str]:
        epoch, lr = self.step // self.sampler.per_epoch, self.schedule.lr_at(self.step - 1, self.steps)
        n = float(self.sums["n"])
        train = {"loss": float(self.sums["loss"]) / n, "accuracy": float(self.sums["right"]) / n}
        loss, accuracy = self._validation()
        if not np.isfinite([train["loss"], loss]).all():
            found = f"the loss is {train['loss']}, of val {loss}"
            raise ValueError(f"epoch {epoch}: {found}; lower vision_lr (now {self.training.vision_lr})")
        row = {"epoch": epoch, "train_loss": train["loss"], "val_loss": loss}
        self.history.append(row | {"train_accuracy": train["accuracy"], "val_accuracy": accuracy, "lr": lr})
        self.sums = self._zero()
        if self.best_val is None or loss < self.best_val["loss"]:
            self._keep_best({"epoch": epoch, "loss": loss, "accuracy": accuracy})
        return {"loss": f"{train['loss']:.3f}", "val loss": f"{loss:.3f}", "val accuracy": f"{accuracy:.3f}"}


def _bar(n: int, text: str) -> tqdm:
    return tqdm(total=n, desc=text, unit="images", file=sys.stdout, mininterval=5.0)


def read_pixels(data: Data, path: Path, config: VisionConfig) -> np.ndarray:
    """Every image scaled and cropped to a square, into one memory-mapped file, by the loader that all stages share.

    Args:
        data:     one row per image, with files.
        path:     the .npy file to write; what is already there of the same images and settings is kept.
        config:   of the model that is to see them.
    Returns: (N, 3, side, side) uint8, read-only.
    Raises: ArtifactError when there are no files, or one is not the one that was embedded.
    """
    if data.image_root is None or data.tokens > 1:
        raise ArtifactError("a vision model needs images with one row each; give images, without a layer")
    hashes, side = data.manifest["sha256"].to_numpy(str), config.side
    shape = (len(data.manifest), 3, side, side)

    def load(row: int) -> np.ndarray:
        try:
            return square(load_image(data.images(row), hashes[row])[0], side, config.shorter)
        except ImageRefused as e:
            raise ArtifactError(f"{data.images(row).name}: {e}; run 01_embed again") from e

    done, key = path.with_suffix(".json"), json_hash([hashes.tolist(), config.model_dump()])
    if standing(path.parent, "the pixels are read again", done).get("of") != key:
        with atomic(path) as tmp, ThreadPoolExecutor(2) as pool, _bar(shape[0], "pixels") as bar:
            out = np.lib.format.open_memmap(tmp, "w+", np.uint8, shape)
            for start in range(0, shape[0], AT_A_TIME):  # the pool holds no more decoded images than these
                for row, image in enumerate(pool.map(load, range(shape[0])[start : start + AT_A_TIME]), start):
                    out[row] = image
                    bar.update()
            out.flush()
            del out
        close(path.parent, done, [path.name], of=key)
    return open_array(path, 4)


def write_tokens(model: AlexNetTransformer, pixels: np.ndarray, path: Path) -> tuple[np.ndarray, dict]:
    """The residual stream of every image, row by row into a .npy file: image i has rows i * T .. i * T + T - 1.

    Args: model; pixels (N, 3, side, side) uint8; path of x.npy, (N * T, 256) float32.
    Returns: logits (N, n_classes) float32; the facts of these rows: d_in, n_rows, layer, tokens, tokens_per_image,
        token_grid, first_patch.
    """
    layer, logits = model.eval().layer(), []

    def parts():
        with _bar(len(pixels), "tokens") as bar:
            for start in range(0, len(pixels), BATCH):
                of, tokens = forward_tokens(model, np.array(pixels[start : start + BATCH]))
                logits.append(of)
                bar.update(len(of))
                yield tokens

    shape = (len(pixels) * layer.n_tokens, layer.width)
    write_rows(path, shape, parts())
    return np.concatenate(logits), {"d_in": shape[1], "n_rows": shape[0]} | layer.facts
