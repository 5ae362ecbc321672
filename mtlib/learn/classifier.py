"""A small head on frozen embeddings: x -> y = relu(hidden layer) -> logit.

    y     = relu((x - x_mean) / x_scale @ W_hidden + b_hidden)      # (B, O)
    logit = y @ w_logit + b_logit                                   # (B,) plausibility, (B, C) classes

The papers' h_2 is x, h_1 is y, h_0 = sigmoid(logit). Transcoders learn y; the logit turns directions of y into causes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from mtlib.coders import files
from mtlib.embed.given.torch_files import load_tensors
from mtlib.embed.store import Data, with_labels
from mtlib.learn.batches import Rows, Sampler, moments
from mtlib.learn.config import ClassifierConfig, TrainConfig
from mtlib.learn.optimiser import AdamW
from mtlib.run.params import Settings

FOLDS = 5
FEW = 2000  # labelled images below which five folds are made as well


def targets(manifest: pd.DataFrame, kind: str) -> tuple[np.ndarray, list[str]]:
    """What the head learns for every row of the manifest.

    Args: manifest with columns label, class_name; kind: "plausibility" | "classes" | "none" (a fact of 01_embed).
    Returns: labels (N,) int64, -1 where unknown; the names of 0 .. C-1 (empty for "none").
    """
    if kind == "plausibility":
        return manifest["label"].fillna(-1).to_numpy(dtype=np.int64), ["plausible", "implausible"]
    if kind == "classes":
        codes, names = pd.factorize(manifest["class_name"].replace("", None), sort=True)
        return codes.astype(np.int64), [str(name) for name in names]
    return np.full(len(manifest), -1, dtype=np.int64), []


def labelled(data: Data) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """`targets` of the data, and the rows of train, val and test whose target is known."""
    labels, names = targets(data.manifest, data.facts["labels"])
    rows = {split: data.rows(split) for split in ("train", "val", "test")}
    return labels, names, {split: at[labels[at] >= 0] for split, at in rows.items()}


def learnable(data: Data) -> list[str]:
    """Capabilities that 01_embed provides for learning: `targets`, and `few` where one split of them says
    little but folds can be made.

    Targets: at least two classes among the train rows, labelled validation and test rows, and one row per image, to which
    a label belongs.
    """
    labels, names, rows = labelled(data)
    two = len(np.unique(labels[rows["train"]])) > 1
    if data.tokens > 1 or not two or not len(rows["val"]) or not len(rows["test"]):
        return []
    groups = data.manifest["group"].to_numpy()
    folds = (labels >= 0).sum() < FEW and not too_few_for_folds(labels, groups, names, 2)
    return ["targets"] + ["few"] * bool(folds)


def too_few_for_folds(y: np.ndarray, groups: np.ndarray, names: Sequence[str], least: int = FOLDS) -> str:
    """Why there are no folds: fewer than `least` groups (n,) have a label y (n,) of `names`; "" when there may be."""
    counts = {name: len(np.unique(groups[y == i])) for i, name in enumerate(names)}
    few = [f"{n} different images are {name}" for name, n in counts.items() if n < least]
    return f"no folds: {few[0]}, folds need at least {least} of each" if few else ""


def group_names(data: Data) -> np.ndarray:
    """(N,) what rates are broken down by: the family of drawn scenes, else the folder or class."""
    return (data.manifest["class_name"] if data.truth is None else data.truth["family"]).to_numpy(dtype=str)


def with_permuted_labels(data: Data, seed: int = 0) -> Data:
    """The null of everything: plausibility labels permuted within family (folder without a truth) and split.

    Each family keeps its share of implausible images in every split, so that what is left to find is chance. The truth
    of rendered scenes (cause, family, true label) is not touched.

    Raises: ValueError when the labels are not plausibility.
    """
    if data.facts.get("labels") != "plausibility":
        raise ValueError(
            f"permute_labels = true needs labels plausible / implausible, this run has {data.facts.get('labels')!r}"
        )
    group = np.char.add(np.char.add(group_names(data), "/"), data.manifest["split"].to_numpy(str))
    labels, rng = data.labels().copy(), np.random.default_rng(seed)
    for name in sorted(set(group)):
        at = np.flatnonzero((group == name) & (labels >= 0))
        labels[at] = rng.permutation(labels[at])
    return with_labels(data, labels)


class _Sizes(Settings):
    """What config.json of a saved classifier must hold to build it again."""

    d_in: int
    d_hidden: int
    n_outputs: int


class Classifier(nn.Module):
    """The head; n_outputs 1 for plausibility, C for classes."""

    def __init__(self, d_in: int, d_hidden: int, n_outputs: int = 1, seed: int = 0):
        super().__init__()
        self.d_in, self.d_hidden, self.n_outputs = d_in, d_hidden, n_outputs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden_layer = nn.Linear(d_in, d_hidden)
            self.output_layer = nn.Linear(d_hidden, n_outputs)
        self.register_buffer("x_mean", torch.zeros(d_in))
        self.register_buffer("x_scale", torch.ones(d_in))

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden layer after ReLU. Args: x (B, D). Returns: (B, O) >= 0. Raises: ValueError giving both shapes."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"classifier: x has shape {tuple(x.shape)}, expected (B, {self.d_in})")
        return self.hidden_layer((x.to(self.x_mean.dtype) - self.x_mean) / self.x_scale).relu()

    def output(self, y: Tensor) -> Tensor:
        """Logits of a hidden layer or its reconstruction. Args: y (B, O). Returns: (B,), or (B, C) for classes."""
        logits = self.output_layer(y)
        return logits[..., 0] if self.n_outputs == 1 else logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits. Args: x (B, D). Returns: (B,) for plausibility, (B, C) for classes."""
        return self.output(self.hidden(x))

    @property
    def w_logit(self) -> Tensor:
        """(O,), or (O, C) for classes: logit = y @ w_logit + bias."""
        return self.output_layer.weight[0] if self.n_outputs == 1 else self.output_layer.weight.T

    @property
    def b_logit(self) -> Tensor:
        """(), or (C,)."""
        return self.output_layer.bias[0] if self.n_outputs == 1 else self.output_layer.bias

    @torch.no_grad()
    def predict(self, x, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Hidden layer and logits of many rows, streamed.

        Args: x (N, D) array or memory map; rows: which ones, None for all. Returns: y (n, O), logits (n,) or (n, C).
        """
        rows = np.arange(len(x)) if rows is None else rows
        data = Rows(x, rows, self.x_mean.device, resident=False)
        ys = [self.eval().hidden(block).cpu() for block in data.chunks(8192)]
        y = torch.cat(ys) if ys else torch.zeros(0, self.d_hidden)
        return y.numpy(), self.output(y.to(self.x_mean.device)).cpu().numpy()

    def save(self, folder: str | Path, **extra) -> None:
        """Write weights.safetensors and config.json (sizes, with `extra` JSON values beside them)."""
        sizes = _Sizes(d_in=self.d_in, d_hidden=self.d_hidden, n_outputs=self.n_outputs)
        files.save_model(folder, self, sizes, **extra)

    @staticmethod
    def load(folder: str | Path) -> Classifier:
        """A classifier saved by `save`. Raises: ValueError when the weights do not fit or are not finite."""
        model = Classifier(**files.read_config(folder, _Sizes).model_dump())
        files.load_weights(folder, model)
        return model.eval()


def given_classifier(path: str, d_in: int, names: list[str]) -> Classifier:
    """A head that was trained elsewhere: a folder that `save` wrote, or clip_classifier.pt of Matryoshka Transcoders.

    The file holds fc1 and fc2, and below `base.` the frozen CLIP, which is not read.

    Args: d_in: width of x here. names: what there is to tell apart, in its order.
    Raises: FileNotFoundError; ValueError when the file is of another layout, or when width or number of outputs differ.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        model = Classifier.load(place)
    else:
        saved = {key: value for key, value in load_tensors(place).items() if not key.startswith("base.")}
        known = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
        if other := sorted(known ^ saved.keys()):
            raise ValueError(f"{place.name}: expected fc1, fc2 and base.*; {other[0]} is missing or not understood")
        model = Classifier(saved["fc1.weight"].shape[1], len(saved["fc1.bias"]), len(saved["fc2.bias"]))
        named = {"fc1": "hidden_layer", "fc2": "output_layer"}
        tensors = {f"{named[key[:3]]}{key[3:]}": value for key, value in saved.items()}
        files.fill(model, model.state_dict() | tensors, place.name)
    n_outputs = {0: model.n_outputs, 2: 1}.get(len(names), len(names))  # without labels there is nothing to compare
    if (model.d_in, model.n_outputs) != (d_in, n_outputs):
        has, here = (
            f"x of width {a} and gives {b} logits" for a, b in ((model.d_in, model.n_outputs), (d_in, n_outputs))
        )
        mend = (
            "" if place.is_dir() else "; it was trained on encoder=ViT-L-14 pretrained=openai, to tell 2 things apart"
        )
        raise ValueError(f"classifier = {path}: it reads {has}; this run has {here}{mend}")
    return model.eval()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy for (B,) logits, cross entropy for (B, C)."""
    if logits.ndim == 1:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    return F.cross_entropy(logits, target.long())


def fit_classifier(
    x, labels: np.ndarray, rows_train: np.ndarray, rows_val: np.ndarray, config: ClassifierConfig, n_classes: int = 0
) -> tuple[Classifier, pd.DataFrame]:
    """Train the head; the weights of the epoch with the lowest validation loss are kept, then calibrated on val.

    Args:
        x:          (N, D) embeddings. labels: (N,) int: 0 / 1 for two classes, else 0 .. C-1; -1 unknown.
        n_classes:  C; 0: as many as all the labels (N,) name, also those of rows that are not read.
        rows_train: rows to learn from. rows_val: rows that choose the epoch and the temperature.
    Returns: the classifier in eval mode; history with epoch, train_loss, val_loss.
    Raises: ValueError if a row list is empty or the train rows have a single class.
    """
    labels = np.asarray(labels)
    if not len(rows_train) or not len(rows_val) or len(np.unique(labels[rows_train])) < 2:
        counts = f"{len(rows_train)} train rows, {len(rows_val)} val rows"
        raise ValueError(f"fit_classifier: {counts}; both must be > 0 and the train rows must hold two classes")
    n_classes = n_classes or int(labels.max()) + 1
    model = Classifier(x.shape[1], config.d_hidden, 1 if n_classes == 2 else n_classes, config.seed)
    cpu = torch.device("cpu")
    data, val = Rows(x, rows_train, cpu), Rows(x, rows_val, cpu)
    target, val_target = (torch.from_numpy(labels[rows].astype(np.int64)) for rows in (rows_train, rows_val))
    mean, variance = moments(data)
    model.x_mean.copy_(torch.from_numpy(mean))
    model.x_scale.copy_(torch.from_numpy(np.where(variance > 1e-12, np.sqrt(variance), 1.0)))
    sampler = Sampler(len(rows_train), config.classifier_batch, config.seed)
    steps = config.epochs * sampler.per_epoch
    optimiser = AdamW(model.named_parameters(), weight_decay=config.weight_decay)
    schedule = TrainConfig(lr=config.classifier_lr, schedule="cosine", final_lr=0.01)
    drop = torch.Generator().manual_seed(config.seed)
    val_x = torch.cat(list(val.chunks(8192)))
    best, best_loss, running, history, per_epoch = None, np.inf, torch.zeros(()), [], sampler.per_epoch
    for step in range(steps):
        at = sampler(step)
        y = model.hidden(data[at])
        if config.dropout:
            y = y * (torch.rand(y.shape, generator=drop) >= config.dropout) / (1 - config.dropout)
        loss = _loss(model.output(y), target[torch.from_numpy(at)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(schedule.lr_at(step, steps))
        running = running + loss.detach()
        if (step + 1) % per_epoch == 0:
            with torch.no_grad():
                val_loss = float(_loss(model(val_x), val_target))
            history.append(((step + 1) // per_epoch, float(running) / per_epoch, val_loss))
            running = torch.zeros(())
            if val_loss < best_loss:
                best, best_loss = {k: v.clone() for k, v in model.state_dict().items()}, val_loss
    if best is None:
        lr = config.classifier_lr
        raise ValueError(f"fit_classifier: the validation loss is never finite; lower classifier_lr (now {lr})")
    model.load_state_dict(best)
    calibrate_temperature(model.eval(), val_x, val_target)
    return model, pd.DataFrame(history, columns=["epoch", "train_loss", "val_loss"])


def calibrate_temperature(model: Classifier, x: Tensor, target: Tensor) -> float:
    """Divide the output layer by the temperature, 0.1 .. 10, that minimises the loss; ranks do not change.

    Args: x (n, D); target (n,). Returns: the temperature. Source: Guo et al. 2017, arXiv 1706.04599.
    """
    with torch.no_grad():
        logits, bounds = model(x).double(), (np.log(0.1), np.log(10))
        loss = lambda log_t: float(_loss(logits / np.exp(log_t), target))  # noqa: E731
        temperature = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
        model.output_layer.weight /= temperature
        model.output_layer.bias /= temperature
    return temperature


def describe(config: ClassifierConfig, history: pd.DataFrame) -> dict:
    """What is stored beside a saved classifier: settings and its best epoch."""
    best = history.loc[history["val_loss"].idxmin()]
    return {"training": config.model_dump(), "best_epoch": int(best["epoch"]), "best_val_loss": float(best["val_loss"])}
