"""What the presets do otherwise than the published code, made from the presets, with the size of each difference.

    ./run_all.sh prove differences

For every setting under `as_published` of a preset, the same small coder is trained twice from the same first weights, as the preset
says and with that one setting as published, on planted rows. Writes docs/differences.md; the test suite checks that no setting
of a preset is missing there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from mtlib.coders.presets import PRESETS
from mtlib.coders.sparse_coder import SparseCoderConfig
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit
from mtlib.run.artifacts import write_text

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {"matryoshka_": "Matryoshka Transcoders", "transcoder": "Matryoshka Transcoders", "sae_for": "SAE for CLIP"}
SYSTEMS |= {"sae": "Matryoshka Transcoders", "monoloss": "MonoLoss", "alexnet": "AlexNet-Transformer"}
WORDS = {  # setting -> what is published, and why the default differs
    "schedule_by": "the learning rate falls once an epoch, not every step",
    "decay_start": "it rests for the first twentieth; the default falls from the start",
    "drop_last": "the last, smaller batch of an epoch is learned from too",
    "unit_norm_when": "decoder rows are scaled to norm 1 between gradient and step, so that the gradient is of other weights",
    "aux_biased": "AuxK adds the pre-bias to the residual, and has a gradient when no latent is dead",
    "inference": "at inference the k largest codes per row of a batch are kept, so that a row's codes depend on its batch",
    "theta_init": "thresholds begin at 1",
    "theta_log": "the threshold is learned as its logarithm",
    "theta_lr": "thresholds have the learning rate of all other weights",
    "penalty": "the L0 penalty's step acts on the codes after the jump, so that it sees half of its window",
    "frozen_decoder": "the decoder is not given to the optimiser and stays as it was drawn",
    "init": "encoder and decoder are drawn independently of each other",
    "unit_norm_along": "the decoder is scaled along its other axis: units of x have norm 1, not latents",
    "theta_decay": "weight decay acts on the thresholds too",
}
ELSEWHERE = (  # (system, published, here, size): what no setting of a preset changes
    (
        "all",
        "first weights as torch draws them for that module",
        "drawn by one seeded generator per coder",
        "another draw of the same law",
    ),
    (
        "all",
        "the weights of the last or the best training epoch",
        "the weights that are best on validation rows",
        "not measured",
    ),
    (
        "all",
        "files in the order of the folder; equal files may be in two splits",
        "files by name; equal files share a split",
        "data dependent",
    ),
    (
        "all",
        "metrics as means over batches, the last one smaller",
        "exact over the split",
        "0 where the batches are equal",
    ),
    (
        "Matryoshka Transcoders",
        "5% validation images and no test images for the classifier",
        "test images that nothing has seen",
        "none on training",
    ),
    (
        "Matryoshka Transcoders",
        "the 20 images shown to the model in random order",
        "the same number, by activation; of more (`top_n`) drawn by the seed",
        "order alone",
    ),
    (
        "MSAE",
        "of a number of epochs that is no multiple of 5 the decay begins above the full learning rate",
        "it begins at the full rate",
        "6% of the rate in one of 33 epochs",
    ),
    (
        "MSAE",
        "the probe is trained by AdamW on rows of norm 1",
        "logistic regression on standardised units",
        "not measured",
    ),
    (
        "MonoLoss",
        "the gradient of the score flows through tied zeros of a latent's minimum",
        "it flows through the smallest code alone",
        "7.9e-3 of the threshold's gradient (JumpReLU), 0 for the others",
    ),
    ("MonoLoss", "thresholds are not bounded", "thresholds stay above 0", "0 until one would fall below"),
    ("SAE for CLIP", "images are embedded again in every epoch", "embedded once and kept", "0"),
    ("AlexNet-Transformer", "no validation images", "a validation split chooses the weights", "not measured"),
)


def system(preset: str) -> str:
    """The published system that a preset is of."""
    return next((name for start, name in SYSTEMS.items() if preset.startswith(start)), "MSAE")


def trained(preset: str, x: np.ndarray, y: np.ndarray, more: dict):
    """(coder, FVU, L0 on held-out rows) of a small coder with one or no setting as published."""
    own = {k: v for k, v in more.items() if k not in TrainConfig.model_fields}
    config = SparseCoderConfig.preset(preset, x.shape[1], y.shape[1], n_latents=128, **own)
    train = dict(epochs=8, steps=0, batch=60, lr=2e-3) | {
        k: v for k, v in more.items() if k in TrainConfig.model_fields
    }
    rows, held = np.arange(500), np.arange(500, 600)
    with tempfile.TemporaryDirectory() as folder:
        coder = fit(config, x, y, rows, held, TrainConfig.preset(preset, **train), folder)
    target = torch.from_numpy(x if config.target == "x" else y)[held]
    with torch.no_grad():
        z = coder.encode(torch.from_numpy(x[held]))
        fvu = float(
            (coder.decode(z, x=torch.from_numpy(x[held])) - target).square().sum()
            / (target - target.mean(0)).square().sum()
        )
    return coder, fvu, float((z > 0).float().sum(1).mean())


def size(preset: str, setting: str, value) -> tuple[float, float, float, float, float]:
    """How far the decoder moves (relative), FVU and L0 as the preset says, and with the setting as published."""
    rng = np.random.default_rng(0)
    hidden = np.maximum(rng.normal(size=(600, 40)) - 1, 0)
    x = (hidden @ rng.normal(size=(40, 24)) + 0.1 * rng.normal(size=(600, 24))).astype(np.float32)
    y = np.maximum(x @ rng.normal(size=(24, 12)), 0).astype(np.float32)
    (one, *ours), (other, *theirs) = (trained(preset, x, y, more) for more in ({}, {setting: value}))
    a, b = one.W_dec.detach(), other.W_dec.detach()
    return float((a - b).norm() / a.norm()), ours[0], theirs[0], ours[1], theirs[1]


def page() -> str:
    """docs/differences.md."""
    text = """# What differs from the published code

Made by `./run_all.sh prove differences` from the presets. A default that differs is one where the published behaviour is a mistake or
depends on chance; `as_published: true` of a method brings it back: `methods: [{name: theirs, preset: topk, as_published: true}]`. That all
else is equal is shown by [parity](../proofs/results/parity.md).

*Size*: a coder of 128 latents on 500 planted rows, eight epochs, trained with and without that one setting: how far the decoder moves, and
FVU and L0 on 100 held-out rows, default then published. It tells which differences matter, not how much they do on your data.

| system | preset | setting | default | published | what that is | decoder moves | FVU | L0 |
|---|---|---|---|---|---|---:|---|---|
"""
    fields = SparseCoderConfig.model_fields | TrainConfig.model_fields
    for preset, parts in PRESETS.items():
        for setting, value in parts.get("as_published", {}).items():
            base = parts["coder"] | parts["train"]
            default = base.get(setting, fields[setting].default)
            moved, *found = size(preset, setting, value)
            numbers = f"{moved:.1%} | {found[0]:.3f}, {found[1]:.3f} | {found[2]:.1f}, {found[3]:.1f}"
            text += (
                f"| {system(preset)} | {preset} | `{setting}` | {default} | {value} | {WORDS[setting]} | {numbers} |\n"
            )
    text += "\n## What no setting changes\n\n| system | published | here | size |\n|---|---|---|---|\n"
    return text + "".join("| " + " | ".join(line) + " |\n" for line in ELSEWHERE)


def main() -> int:
    """Writes the page. Returns 0."""
    text = page()
    print(text)
    write_text(ROOT / "docs" / "differences.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
