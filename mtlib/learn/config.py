"""Settings of everything that is trained here, checked when made. Torch-free, so that a run checks them before it starts."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.presets import PRESETS
from mtlib.run.params import Settings, nearest


class TrainConfig(Settings):
    """How a coder is trained. Raises ValueError naming the field, its value and its range."""

    steps: int = Field(0, ge=0)  # optimiser steps; 0 = `epochs`
    epochs: int = Field(1, ge=1)
    batch: int = Field(256, ge=1)
    batch_images: bool = False  # the batch counts images, whole ones where an image has several rows (tokens)
    drop_last: bool = True  # of an epoch, the rows that fill no batch
    # parts of a batch whose gradients add up to its step, in less memory; what compares rows compares those of a part
    accumulate: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    eps: float = Field(1e-8, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # down to final_lr * lr
    final_lr: float = Field(0.0, ge=0, le=1)  # share of lr at the end
    decay_start: float = Field(0.0, ge=0, lt=1)  # share of the steps after which the rate falls
    schedule_by: Literal["step", "epoch"] = "step"  # epoch: the rate is constant within an epoch, whole epochs count
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the steps over which it rises from 0
    grad_clip: float = Field(0.0, ge=0)  # largest gradient norm; 0 = no limit
    clip_when: Literal["last", "first"] = "last"  # after project_gradient, or before it
    revive_every: int = Field(
        0, ge=0
    )  # steps between restarts of dead latents at rows of the data; 0: never (MonoLoss)
    theta_lr: float = Field(10.0, gt=0)  # learning rate of JumpReLU thresholds, as a multiple of lr
    theta_decay: bool = False  # weight_decay of the thresholds, too
    # a transcoder learns the mean of y over that many near train images of one label (batches.neighbour_means); 0: y itself
    target_neighbours: int = Field(0, ge=0)
    l0_target: int = Field(0, ge=0)  # latents per row; 0 = as the coder's settings say
    seed: int = Field(0, ge=0)
    val_every: int = Field(50, ge=0)  # steps between validations; 0 = once an epoch
    log_every: int = Field(25, ge=1)
    checkpoint_steps: int = Field(0, ge=0)  # steps between checkpoints; 0 = by time only
    checkpoint_seconds: float = Field(60.0, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "tf32", "bf16"] = "tf32"  # of products; tf32: CUDA; all else stays float32
    compile: bool = False  # torch.compile the loss; worth its half minute on a GPU

    @staticmethod
    def preset(name: str, **overrides) -> TrainConfig:
        """Published training settings of a method, with overrides."""
        return TrainConfig(**(PRESETS[name]["train"] | overrides))

    def lr_at(self, step: int, steps: int, per_epoch: int = 1) -> float:
        """Learning rate of step 0 .. steps-1: linear warm-up, then constant, cosine or linear decay to final_lr * lr.

        With schedule_by = epoch the decay is by whole epochs of `per_epoch` steps; the first that counts has the full rate.
        """
        warm = round(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        start, into = max(warm, round(self.decay_start * steps)), 1
        if self.schedule_by == "epoch":
            step, steps, into = step // per_epoch, -(-steps // per_epoch), 0
            start = int(self.decay_start * steps)
        if self.schedule == "constant" or step < start:
            return self.lr
        done = (step - start + into) / max(1, steps - start)
        shape = (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.lr * (self.final_lr + (1 - self.final_lr) * shape)


class ClassifierConfig(Settings):
    """The head of notebook 02. Raises ValueError naming the field, its value and its range.

    Published (Matryoshka Transcoders): d_hidden 256, lr 1e-4, 20 epochs, batch 16, no standardisation.
    """

    d_hidden: int = Field(256, ge=1)
    epochs: int = Field(20, ge=1)
    classifier_lr: float = Field(1e-3, gt=0)
    classifier_batch: int = Field(64, ge=1)
    weight_decay: float = Field(1e-2, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)  # on the hidden layer, in training
    seed: int = Field(0, ge=0)


class VisionTraining(Settings):
    """How the vision model is trained; the defaults are published. Raises ValueError naming the field, its value and its range.

    The variant "positions" has defaults of its own (OF_POSITIONS); 0 as batch or learning rate is the variant's.
    """

    vision_variant: Literal["published", "positions"] = "published"
    vision_epochs: int = Field(10, ge=1)
    vision_batch: int = Field(64, ge=2)
    vision_lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)  # of every parameter
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the steps
    schedule: Literal["constant", "cosine"] = "constant"
    grad_clip: float = Field(0.0, ge=0)  # largest gradient norm; 0 = no limit
    mirrored: bool = False  # train images at random, half of them
    drop_last: bool = False  # leave out the images of an epoch that fill no batch
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_seconds: float = Field(120.0, gt=0)
    checkpoint_steps: int = Field(0, ge=0)  # 0: by time only

    @model_validator(mode="before")
    @classmethod
    def _of_variant(cls, given: dict) -> dict:
        own = {k: v for k, v in given.items() if v != 0 or k not in ("vision_batch", "vision_lr")}
        return (OF_POSITIONS if given.get("vision_variant") == "positions" else {}) | own


OF_POSITIONS = dict(vision_batch=32, vision_lr=3e-4, weight_decay=0.05, warmup=0.1, schedule="cosine")
OF_POSITIONS |= dict(grad_clip=1.0, mirrored=True, drop_last=True)


class Method(Settings):
    """A line of the parameter `methods`: a preset under a name of its own, and settings that differ from it.

    Beside the fields below: any setting of SparseCoderConfig, and of TrainConfig but those OF_A_RUN. A method with a
    `checkpoint` is a coder that was trained elsewhere: it has its settings, and takes `k` alone.
    """

    model_config = ConfigDict(extra="allow")
    name: str
    preset: str = ""
    checkpoint: str = ""  # a file, a folder or a place on the hub: see published.open_coder
    n_latents: int | None = Field(None, ge=1)
    k: Any = None  # latents per row, instead of `ks`
    l0: int = Field(0, ge=0)  # latents per row that training aims at; 0: as the preset
    as_published: bool = False  # also what the authors' code does by mistake (presets.py)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ValueError("only letters, digits, - and _")
        return name

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name and name not in PRESETS:
            raise ValueError(f"no such preset; {nearest(name, PRESETS)}")
        return name

    @model_validator(mode="after")
    def _check(self) -> Method:
        fields = [*SparseCoderConfig.model_fields, *TrainConfig.model_fields]
        known = [n for n in fields if n not in OF_A_RUN]
        for name in self.model_extra:
            if name not in known:
                meant = nearest(name, [*known, "k", "l0", "n_latents"])
                raise ValueError(f"{name} is no setting of a method; {meant}")
        if not self.preset and not self.checkpoint:
            raise ValueError("preset is missing")
        if self.checkpoint and (more := sorted(self.model_fields_set - {"name", "checkpoint", "k"})):
            raise ValueError(f"{more[0]} = {getattr(self, more[0])!r}: a checkpoint has its settings; it takes k alone")
        if self.k is not None and (type(self.k) is not int or self.k < 1):
            raise ValueError(f"k = {self.k!r}: expected a whole number above 0 (several: ks)")
        return self

    def configs(self, d_in: int, d_out: int, coder: dict, train: dict) -> tuple[SparseCoderConfig, TrainConfig]:
        """Coder and training settings: the preset's, overlaid by those for every method, and by the method's own."""
        no_settings = ("name", "preset", "l0", "as_published")
        own = PRESETS[self.preset].get("as_published", {}) if self.as_published else {}
        own = own | {n: v for n, v in self if n in self.model_fields_set and n not in no_settings}
        how = {n: v for n, v in own.items() if n in TrainConfig.model_fields}
        train_config = TrainConfig.preset(self.preset, **(train | how | {"l0_target": self.l0}))
        own = {n: v for n, v in own.items() if n not in how}
        if own.get("unit_rows", PRESETS[self.preset]["coder"].get("unit_rows")):  # rows of norm 1 keep their own units
            coder = {n: v for n, v in coder.items() if n == "n_latents"}
        config = SparseCoderConfig.preset(self.preset, d_in, d_out, **(coder | own))
        if train_config.target_neighbours and config.target == "x":
            raise ValueError("target_neighbours: only of a transcoder, whose target is y")
        return (config.with_l0(self.l0) if self.l0 else config), train_config


# what a method does not decide for itself; l0_target is its l0
OF_A_RUN = ("d_in", "d_out", "l0_target", "seed", "val_every", "log_every", "checkpoint_steps", "checkpoint_seconds")
OF_A_RUN += ("device", "precision", "compile")
FOR_TRAINING = ("steps", "batch", "lr", "val_every", "precision")  # parameters for every method: of training
FOR_CODERS = ("n_latents", "centre", "scale", "target_centre", "target_scale")  # and of the coder


class MethodsConfig(Settings):
    """The parameters of notebook 03; 0 or "" leaves what is published.

    Raises: ValueError in the words of a params file: `methods[2].k = 5000 is larger than n_latents = 2048`.
    """

    methods: list[Method] = Field(min_length=1)
    checkpoint: str = ""  # instead of the methods
    seeds: list[int] = Field(min_length=1)  # of methods that are trained
    n_latents: int = Field(0, ge=0)
    steps: int = Field(0, ge=0)
    batch: int = Field(0, ge=0)
    lr: float = Field(0.0, ge=0)
    centre: str = ""
    scale: str = ""
    target_centre: str = ""
    target_scale: str = ""
    val_every: int = Field(0, ge=0)
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    fits_at_once: int = Field(2, ge=1)
    processes: int = Field(1, ge=1)
    tensorboard: str = ""

    @field_validator("tensorboard")
    @classmethod
    def _installed(cls, folder: str) -> str:
        if folder and not find_spec("tensorboard"):
            raise ValueError("needs the package tensorboard, which is not installed: pip install tensorboard")
        return folder

    @model_validator(mode="before")
    @classmethod
    def _theirs(cls, values: dict) -> dict:
        one = values.get("checkpoint")
        return values | {"methods": [{"name": "theirs", "checkpoint": one}]} if one else values

    @model_validator(mode="after")
    def _check(self) -> MethodsConfig:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"methods: their names must differ: {names}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds = {self.seeds}: expected whole numbers >= 0, each once")
        for i, method in enumerate(self.methods):
            if method.checkpoint:
                continue
            width = method.n_latents or self.n_latents or PRESETS[method.preset]["coder"]["n_latents"]
            for key in ("k", "l0"):
                if (getattr(method, key) or 0) > width:
                    raise ValueError(f"methods[{i}].{key} = {getattr(method, key)} is larger than n_latents = {width}")
            try:  # widths of x and y are not known yet, and not needed
                self.configs(method, 1, 1)
            except ValueError as e:
                field = str(e).split(" ")[0]
                given = field in FOR_CODERS and field not in method.model_fields_set
                raise ValueError(f"{e} (methods[{i}])" if given else f"methods[{i}].{e}") from None
        return self

    def configs(self, method: Method, d_in: int, d_out: int) -> tuple[SparseCoderConfig, TrainConfig]:
        """Coder and training settings of one of the methods. d_in, d_out: widths of x and y."""
        coder, train = (
            {n: v for n in names if (v := getattr(self, n)) not in ("", 0)} for names in (FOR_CODERS, FOR_TRAINING)
        )
        return method.configs(d_in, d_out, coder, train)
