# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The bundled encoder · How was the small CLIP of the demo trained, and what can it do?
#
# The demo's encoder is a CLIP of 4.4 million weights that has seen drawings only. It is told of errors by captions (of two causes
# never). No term of its training says which pictures are implausible: beside captions there are only which pictures show the same
# scene and that a scene differs from its twin. This notebook trains it from a seed and puts the result beside the bundled one.
#
# *Needs* nothing. *Makes* `clip/`, a folder that notebook 01 takes as `encoder = "local-dir:<folder>"`, and its report card.
# *Takes* about two hours on two cores; a run that is stopped goes on where it was.

# %% tags=["parameters"]
run_dir = "runs/train_clip"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
clip_steps = 5000  # optimiser steps
clip_scenes = 18000  # scenes to draw, four pictures of each
clip_batch = 128  # pictures per step, four per scene
clip_lr = 2e-3  # largest learning rate
clip_seed = 100_000  # of the scenes, the weights and the order; from 100,000 on: disjoint from every data set
clip_threads = 2  # processes that draw, threads that train; the last digits of the weights depend on it
clip_save_every = 100  # steps between two checkpoints
clip_test_scenes = 9000  # scenes of another seed that the report card is measured on; two thirds of them fit the probes

# %%
import json

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mtlib import plots
from mtlib.embed.encoders import Encoder
from mtlib.embed.store import unit_rows
from mtlib.features.familiar import Familiar
from mtlib.measure.probes import fit_probe
from mtlib.run.artifacts import close, standing
from mtlib.run.stage import Stage
from mtlib.scenes import clip_training as terms
from mtlib.scenes.captions import CONTEXT_LENGTH, caption, phrases, tokenizer
from mtlib.scenes.causes import CAUSES
from mtlib.scenes.dataset import FAMILIES, SCENES_PER_SEED, Spec, render

# %%
plots.use_style()
torch.set_num_threads(clip_threads)
stage = Stage("train_clip", globals())
assert clip_seed >= 100_000 and clip_batch % 4 == 0, "clip_seed from 100,000 on, clip_batch a multiple of 4"

# %% [markdown]
# ## The pictures
#
# Every scene is drawn four times: plausible twice and implausible twice, each under nuisances of its own. A caption claims some of what
# is in its picture, and is a positive for *every* picture of the batch that it is true of.

# %%
pixels, facts = terms.draw_scenes(clip_scenes, clip_seed, clip_threads, stage.out / "checkpoint")
rng = np.random.default_rng(0)
shown = [{"scene": i, "picture": v} | facts[i][v] for i in range(min(9, clip_scenes)) for v in range(4)]
for line in shown:
    line["caption"], _ = caption(rng, line["family"], line["error"], line["variant"], line)
pictures = [[Image.fromarray(p) for p in pixels[i]] for i in range(min(9, clip_scenes))]
heads = ["plausible", "the same scene", "implausible", "the same scene"]
fig = plots.image_grid(pictures, names=[scene[0]["family"] for scene in facts[:9]], heads=heads)
stage.figure(fig, "pictures", pd.DataFrame(shown), "Training scenes, one of each family.")

# %% [markdown]
# ## The model
#
# Of the towers tried (a 5-block ViT, ConvNeXt-Atto, RegNetX-002) this one learned most per second of one core by far.

# %%
model = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 64, "timm_model_name": "dla46_c", "timm_pool": "avg", "timm_proj": "linear"},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "squash"}
torch.manual_seed(clip_seed % 2**31)
clip = CLIP(**model, output_dict=True)


# %%
def augmented(pixels, rng):
    """Pictures (B, 64, 64, 3) uint8, each mirrored and shifted by up to 3 pixels, as the encoder's own preprocessing gives them."""
    out, padded = np.empty_like(pixels), np.pad(pixels, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    for i, (dx, dy, flip) in enumerate(rng.integers([0, 0, 0], [7, 7, 2], (len(pixels), 3))):
        x = padded[i, dy : dy + terms.SIDE, dx : dx + terms.SIDE]
        out[i] = x[:, ::-1] if flip else x
    return (torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25  # (B, 3, 64, 64)


# %% [markdown]
# ## Four terms
#
# *caption*: contrastive, with all true captions as positives. *hard*: of a phrase for an error and one for its absence, the true one
# (captioned causes only). *same*: a scene drawn again is the positive of its picture, all else in the batch a negative. *twin*: the
# same choice among the four pictures of one scene, two of which are its twin. The last two see neither words nor labels: they ask that
# a picture be nearer to the same scene under other nuisances than to its twin, and are not told which of the two is right. So the
# image tower can represent the two causes that no caption tells, while the text tower never learns to name them.

# %%
weights = {"caption": 0.5, "same": 0.1, "twin": 1.0, "hard": 1.0}


def losses(pixels, facts, rng):
    told = [caption(rng, f["family"], f["error"], f["variant"], f) for f in facts]
    true = torch.from_numpy(terms.truth_of_captions(facts, [claims for _, claims in told]))
    image = F.normalize(clip.encode_image(augmented(pixels, rng)), dim=-1)
    text = F.normalize(clip.encode_text(tokenizer()([text for text, _ in told])), dim=-1)
    parts = {"caption": terms.caption_loss(clip.logit_scale.exp() * image @ text.T, true)}
    parts["same"], parts["twin"] = terms.scene_losses(image)
    return parts | {"hard": terms.hard_negative_loss(clip, image, facts, rng)}


# %% [markdown]
# ## The training
#
# AdamW, the learning rate warmed up over a twelfth of the steps and lowered along a cosine. Everything random is a function of seed and
# step, so a run that was stopped continues exactly.


# %%
def learning_rate(step):
    warm = max(1, clip_steps // 12)
    fall = 0.5 + 0.5 * np.cos(np.pi * (step - warm) / max(clip_steps - warm, 1))
    return clip_lr * (0.02 + 0.98 * float(step / warm if step < warm else fall))


groups = [{"params": [p for p in clip.parameters() if p.ndim > 1], "weight_decay": 0.05}]
groups += [{"params": [p for p in clip.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=clip_lr, betas=(0.9, 0.98))
folder, first, history = stage.out / "checkpoint", 0, []
if found := standing(folder, "the training starts anew", folder / "last.json"):
    saved = torch.load(folder / f"{found['step']}.pt", weights_only=True)
    clip.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first, history = saved["step"], saved["history"]
    print(f"continues at step {first}")

# %%
n, per_epoch = clip_batch // 4, clip_scenes // (clip_batch // 4)
for step in tqdm(range(first, clip_steps), mininterval=5.0):
    order = np.random.default_rng([clip_seed, 5, step // per_epoch]).permutation(clip_scenes)
    pick, rng = order[step % per_epoch * n :][:n], np.random.default_rng([clip_seed, 6, step])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    parts = losses(pixels[pick].reshape(-1, 64, 64, 3), [f for i in pick for f in facts[i]], rng)
    optimizer.zero_grad()
    sum(weight * parts[name] for name, weight in weights.items()).backward()
    nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        clip.logit_scale.clamp_(0, np.log(50))
    history.append({"step": step + 1} | {name: value.item() for name, value in parts.items()})
    if (step + 1) % clip_save_every == 0:
        saved = {"model": clip.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "history": history}
        torch.save(saved, folder / f"{step + 1}.pt")
        close(folder, folder / "last.json", [f"{step + 1}.pt"], step=step + 1)  # from now on that one counts
        (folder / f"{step + 1 - clip_save_every}.pt").unlink(missing_ok=True)

# %%
curve = pd.DataFrame(history).ewm(alpha=0.05, adjust=False).mean().assign(step=lambda f: range(1, len(f) + 1))
fig, ax = plt.subplots(figsize=(6.5, 3.6))
for name, marker in zip(weights, plots.DASHES * 2, strict=False):
    ax.plot(curve["step"], curve[name], marker, label=name)
ax.set(xlabel="step", ylabel="loss (running mean)")
ax.legend()
stage.figure(fig, "losses", curve, "The four terms of the loss, as running means.")

# %% [markdown]
# ## The files
#
# open_clip's own layout, the weights in half precision.

# %%
folder = stage.out / "clip"
folder.mkdir(exist_ok=True)
config = {"model_cfg": model, "preprocess_cfg": preprocess}
(folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
state = {k: (v.detach().half() if v.is_floating_point() else v).contiguous() for k, v in clip.state_dict().items()}
save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
(folder / "open_clip_model.safetensors").chmod(0o644)

# %% [markdown]
# ## The report card
#
# On scenes that neither training nor any data set draws. One linear probe says for all families whether a picture is plausible; a
# second one per family is told that family only. Zero-shot: which family's phrases are nearest, and whether the phrases of its error
# are nearer than those of its absence. Where no caption told of the error, these words mean nothing to the text tower.

# %%
families, n = np.array(list(FAMILIES)), clip_test_scenes
of, error = np.arange(n) % len(families), np.arange(n) // len(families) % 2
train, test = np.split(np.arange(n), [n * 2 // 3])
encoders = {"bundled": Encoder.load("demo"), "trained here": Encoder.load(f"local-dir:{folder}")}
seen = {name: [] for name in encoders}
for start in tqdm(range(0, n, 256), mininterval=5.0):
    some = range(start, min(start + 256, n))
    images = [render(Spec(50_000 * SCENES_PER_SEED + i, families[of[i]], bool(error[i])))[0] for i in some]
    for name, encoder in encoders.items():
        seen[name].append(unit_rows(encoder.encode_images(images)))


# %%
def text(encoder, kind, name):
    return unit_rows(encoder.encode_texts(list(phrases()[kind, name])).mean(axis=0)[None])[0]


def scores(x, rows):
    """Probability of an error in every picture, by a probe that is fitted on some rows."""
    return fit_probe(x, np.intersect1d(rows, train), error).predict_proba(x)[:, 1]


# %%
lines = []
for (name, encoder), x in zip(encoders.items(), map(np.concatenate, seen.values()), strict=True):
    right = (scores(x, train) > 0.5) == error
    named = (x @ np.stack([text(encoder, "object", f) for f in families]).T).argmax(axis=1) == of
    for i, (cause, about) in enumerate(CAUSES.items()):
        own, here = np.flatnonzero(of == i), np.intersect1d(test, np.flatnonzero(of == i))
        shift = x @ (text(encoder, "error", cause) - text(encoder, "normal", about["family"]))
        line = {"encoder": name, "cause": cause, "captioned": about["captioned"], "n_test": len(here)}
        line |= {"probe_accuracy": right[here].mean(), "zero_shot_family": named[here].mean()}
        line["probe_auroc"] = roc_auc_score(error[here], scores(x, own)[here])
        lines.append(line | {"zero_shot_auroc": roc_auc_score(error[here], shift[here])})
card = pd.DataFrame(lines)
stage.table(card, "card", "The bundled encoder and the one trained here, on scenes that neither has seen.")

# %% [markdown]
# The encoder answers for every picture, also for a photograph. So what it has seen goes with it: embeddings of 4,000 of the scenes, and
# the distance that all but 2% of others keep from them.

# %%
if usual := Familiar.fit(x[train[:4000]], x[test[::2]]):  # of the encoder trained here; None of a trial with few scenes
    usual.save(folder)
    outside = (usual.distance(x[test[1::2]]) > 1).mean()
    stage.say("familiar", f"Of scenes that neither it nor its limit has seen, {outside:.1%} count as unlike its own.")

# %%
means = card.groupby("encoder", sort=False)[["probe_accuracy", "zero_shot_family"]].mean()
assert clip_steps < 1000 or (means["probe_accuracy"] > 0.93).all(), "a trained encoder tells errors from their absence"
means.round(3)

# %% [markdown]
# ## Answer, limits, next
#
# No term said which picture of a pair is implausible; captions did, for seven of nine causes, as captions of the web may. *captioned:
# False* means that no words told of the error at all: what the probe finds there, the image tower learned from pictures alone. Of
# photographs it knows nothing. Next: notebook 01 embeds with these weights.

# %%
stage.finish(clip_steps=clip_steps, clip_scenes=clip_scenes, pictures_seen=clip_steps * clip_batch)
