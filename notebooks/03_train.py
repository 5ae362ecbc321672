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
# # 03 · How well do a few features per image explain the embedding, and the layer that decides?
#
# A sparse coder rewrites each image as a handful of active features out of many. An autoencoder rebuilds the embedding
# `x` from them; a transcoder reads `x` and predicts `y`, the hidden layer by which the classifier decides, so that its
# features should be those that matter for plausibility. Matryoshka coders make the first features good alone.
#
# *Needs* the embeddings of 01, and `y` of 02 for transcoders. *Makes* `coders/<method>-s<seed>/` and `coders.csv`.
# *Takes* about 90 seconds on two cores for the demo. A method that needs `y` where there is none becomes a row with the
# reason.

# %% tags=["parameters"] check="mtlib.learn.plan:check_parameters"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
methods = [  # preset: a published method or ours; any setting of it may follow; l0: features per image to aim at
    {"name": "matryoshka_transcoder", "preset": "matryoshka_transcoder", "l0": 32},
    {"name": "transcoder", "preset": "transcoder", "l0": 32},
    {"name": "sae", "preset": "sae", "l0": 32},
    {"name": "matryoshka_sae", "preset": "matryoshka_sae", "l0": 32},
    {"name": "matryoshka_transcoder_shared", "preset": "matryoshka_transcoder_shared", "l0": 32},
]
seeds = [0, 1]  # each method is trained with each; the first is the one that is interpreted
n_latents = 512  # features of every method; 0: as published
steps = 400  # optimiser steps; 0: as published
batch = 256  # images per step; 0: as published
lr = 2e-3  # learning rate at this batch and number of steps; 0.0: as published
centre = "mean"  # subtract the train mean of x, for every method; "": as published
scale = "rms"  # scale x to mean square 1, for every method; "": as published
target_centre = "mean"  # the same for y
target_scale = "rms"
val_every = 50  # steps between validations, whose best weights are kept; 0: as published, else every 50
precision = "float32"  # of the products: float32 | tf32 (on a GPU) | bf16
fits_at_once = 1  # coders trained at a time, each in its own process; they share the threads
processes = 1  # processes that train one coder together, each with a share of every batch: cores, or GPUs

# %%
from IPython.display import display

from mtlib import plots
from mtlib.embed import store
from mtlib.learn import figures
from mtlib.learn.classifier import Classifier
from mtlib.learn.methods import at_their_last_step, epochs, train_methods
from mtlib.run.artifacts import atomic
from mtlib.run.stage import Stage

plots.use_style()
train = dict(steps=steps, batch=batch, lr=lr, val_every=val_every, precision=precision)
common = dict(n_latents=n_latents, centre=centre, scale=scale, target_centre=target_centre, target_scale=target_scale)
how = dict(fits_at_once=fits_at_once, processes=processes)
stage = Stage("03_train", run_dir, stage_dir, params=dict(methods=methods, seeds=seeds, **train, **common, **how))

# %% [markdown]
# ## The data
#
# Coders learn from the train images, labelled or not. The validation images choose the best step and freeze the
# thresholds, so that the code of an image never depends on the images that are coded with it.

# %%
data = store.open_data(stage)
n_train, n_val = len(data.rows("train")), len(data.rows("val"))
width = f"y has {data.y.shape[1]} units" if data.y is not None else "there is no y, so transcoders are left out"
print(f"{n_train} train and {n_val} validation images; x has {data.x.shape[1]} units; {width}.")

# %% [markdown]
# ## Training
#
# One loop for every method. An interrupted run goes on from its last checkpoint and ends with the same bytes.

# %%
head = Classifier.load(stage.input("02_classify") / "classifier") if data.y is not None else None
w_logit = head.w_logit.detach().numpy() if head else None
coders, history = train_methods(data, methods, seeds, stage.out / "coders", train, common, w_logit, **how)
with atomic(stage.out / "coders.csv") as tmp:
    coders.to_csv(tmp, index=False, float_format="%.6g", lineterminator="\n")

# %%
if len(history):
    styles = plots.method_styles(coders["method"])  # a method looks the same in every figure of the run
    fig, frame = figures.training_curves(history, styles)
    plots.save(stage, fig, "curves", frame)

# %%
if len(history):
    by_epoch = epochs(history)
    plots.table(stage, by_epoch, "epochs")
    display(by_epoch.groupby(["method", "seed"], sort=False).tail(1).drop(columns="target").round(4))

# %%
done = coders[coders["status"] == "ok"]
for row in coders[coders["status"] != "ok"].itertuples():
    print(f"{row.method} (seed {row.seed}) was skipped: {row.reason}.")
for method, part in done.groupby("method", sort=False):
    at = ", ".join(str(step) for step in part["best_step"])
    print(f"{method}: best validation at step {at} of {history['step'].max()}.")
if len(done):
    n_growing = at_their_last_step(coders, history)
    print(f"{n_growing} of {len(done)} coders were best at their last step: with more steps they would go on learning.")

# %% [markdown]
# ## What each method explains
#
# FVU is the share of the target's variance that is left unexplained: 0 is perfect, 1 is the mean. An FVU of `x` and one
# of `y` measure different things, so they stand in two tables. L0 is measured, not set: compare methods only where it
# is about the same.

# %%
shown = ["method", "seed", "n_latents", "l0_val", "matched", "fvu_val", "dead", "best_step"]
for target, part in done.groupby("target"):
    print(f"target {target}")
    display(part[shown].round(3).reset_index(drop=True))

# %%
for target, part in done.groupby("target"):
    mean = part.groupby("method")[["fvu_val", "l0_val"]].mean()
    best = mean["fvu_val"].idxmin()
    print(f"Of target {target}, {best} leaves least: FVU {mean.fvu_val[best]:.3f} at L0 {mean.l0_val[best]:.0f}.")
print(f"Dead latents: at most {done['dead'].max():.0%} of a coder." if len(done) else "No coder was trained.")

# %% [markdown]
# ## Answer
#
# The tables say what is left unexplained at the measured L0. A low FVU does not mean that a feature is about physics:
# notebook 04 compares the methods on test images and, where the truth is known, asks which causes their features find.

# %%
n_ok, n_skipped = len(done), len(coders) - len(done)
provides = ["coders"] * bool(n_ok) + ["autoencoders"] * bool((done["target"] == "x").any())
provides += ["seeds"] * bool(done.duplicated("method").any())
stage.finish(provides=provides, methods=[m["name"] for m in methods], seeds=list(seeds), n_ok=n_ok, n_skipped=n_skipped)
