"""How a coder is trained: steps, optimiser, schedule, seed; checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mtlib.coders.checked import check
from mtlib.coders.presets import train_settings


@dataclass(frozen=True)
class TrainConfig:
    """How a coder is trained. Raises ValueError naming the field, its value and its range."""

    steps: int = 0  # optimiser steps; 0 = `epochs`
    epochs: int = 1
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    schedule: str = "constant"  # constant | cosine | linear, down to final_lr * lr
    final_lr: float = 0.0  # share of lr at the end
    decay_start: float = 0.0  # share of the steps after which the rate falls
    warmup: float = 0.0  # share of the steps over which it rises from 0
    grad_clip: float = 0.0  # largest gradient norm; 0 = no limit
    theta_lr: float = 10.0  # learning rate of JumpReLU thresholds, as a multiple of lr
    l0_target: int = 0  # latents per row; 0 = as the coder's settings say
    seed: int = 0
    val_every: int = 50  # steps between validations; 0 = once an epoch
    log_every: int = 25
    checkpoint_steps: int = 0  # steps between checkpoints; 0 = by time only
    checkpoint_seconds: float = 60.0
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "float32"  # of products: float32 | tf32 (CUDA) | bf16; weights, codes and optimiser stay float32
    compile: bool = False  # torch.compile the loss; worth its half minute on a GPU

    def __post_init__(self):
        for name, allowed in {
            "schedule": ("constant", "cosine", "linear"),
            "device": ("auto", "cpu", "cuda"),
            "precision": ("float32", "tf32", "bf16"),
        }.items():
            check(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        for name in ("steps", "l0_target", "checkpoint_steps", "seed", "val_every"):
            check(self, name, getattr(self, name) >= 0, ">= 0")
        for name in ("epochs", "batch", "log_every"):
            check(self, name, getattr(self, name) >= 1, ">= 1")
        for name in ("lr", "eps", "theta_lr", "checkpoint_seconds"):
            check(self, name, 0 < getattr(self, name) < math.inf, "finite and > 0")
        for name in ("weight_decay", "grad_clip"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "finite and >= 0")
        for name in ("beta1", "beta2", "decay_start", "warmup"):
            check(self, name, 0 <= getattr(self, name) < 1, "between 0 and 1 (not 1)")
        check(self, "final_lr", 0 <= self.final_lr <= 1, "between 0 and 1")

    @staticmethod
    def preset(name: str, **overrides) -> TrainConfig:
        """Published training settings of a method, with overrides."""
        return TrainConfig(**(train_settings(name) | overrides))


def lr_at(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of step 0 .. steps-1: linear warm-up, then constant, cosine or linear decay to final_lr * lr."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    start = max(warm, round(config.decay_start * steps))
    if config.schedule == "constant" or step < start:
        return config.lr
    done = (step - start + 1) / max(1, steps - start)
    shape = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final_lr + (1 - config.final_lr) * shape)
