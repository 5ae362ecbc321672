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

# %% tags=["parameters"] needs="trainable" settings="mtlib.learn.config:MethodsConfig"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
methods = [  # preset: a published method or ours, and any setting of it; l0: features per image to aim at; or a checkpoint
    {"name": "neighbour_transcoder", "preset": "neighbour_transcoder", "l0": 32},
    {"name": "matryoshka_transcoder", "preset": "matryoshka_transcoder", "l0": 32},
    {"name": "transcoder", "preset": "transcoder", "l0": 32},
    {"name": "sae", "preset": "sae", "l0": 32},
    {"name": "matryoshka_sae", "preset": "matryoshka_sae", "l0": 32},
]
checkpoint = ""  # instead of the methods, a trained coder: a published file, a folder, or hf-hub:owner/name[/file]
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
precision = "tf32"  # of the products: float32 | tf32 (on a GPU; float32 elsewhere) | bf16
fits_at_once = 2  # coders trained at a time, each in its own process; they share the threads, or the GPU
processes = 1  # processes that train one coder together, each with a share of every batch: cores, or GPUs
tensorboard = ""  # a folder for the training curves as TensorBoard's event files, too; needs that package

# %%
import pandas as pd

from mtlib import plots
from mtlib.embed import store
from mtlib.learn.classifier import Classifier
from mtlib.learn.config import MethodsConfig
from mtlib.learn.methods import (
    coder_configs,
    epochs,
    late_gains,
    log_events,
    provided,
    save_coders,
    train_methods,
    training_curves,
)
from mtlib.run.stage import Stage

# %%
plots.use_style()
stage = Stage("03_train", globals())
config = stage.settings(MethodsConfig)
data = store.open_data(stage)
w_logit = None

# %% [markdown]
# ## The coders
#
# Every method is one family of formulas, and a preset is a choice within it:
#
#     z_pre = (x - b_pre) @ W_enc + b_enc                  z = selection(activation(z_pre))
#     y_l   = z[:, :m_l] @ W_dec_l + b_dec_l               for each level l, which has the first m_l features
#     loss  = sum_l w_l * mse(y_l, y) + penalty(z) + mono_weight * (1 - MonoScore) + aux_weight * AuxK

# %%
coder = {name: coder.model_dump() for name, coder in coder_configs(data, config).items()}
terms = ["target", "activation", "selection", "ks", "levels", "decoder", "penalty", "mono_weight", "aux_weight"]
pd.DataFrame(coder).loc[terms].T

# %% [markdown]
# ## Training
#
# `neighbour_transcoder`, ours, is the published Matryoshka transcoder with another target: not `y` itself but its mean over the 100
# nearest train images of the same label. What differs among them (background, style, place) is averaged away, and what they share
# stays: what kind of scene it is, and whether something is wrong with it.
#
# Coders learn from the train images, labelled or not, in one loop for every method. The validation images choose the best
# step and freeze the thresholds, so that the code of an image never depends on the images that are coded with it. An
# interrupted run goes on from its last checkpoint and ends with the same bytes. A coder that was trained elsewhere is not
# trained again: it is measured on the validation images.

# %% needs="head"
w_logit = Classifier.load(stage.input("02_classify") / "classifier").w_logit.detach().numpy()

# %%
coders, history = train_methods(data, config, stage.out / "coders", w_logit)
save_coders(stage.out, coders)
log_events(history, tensorboard)

# %% needs="!checkpoint"
fig, frame = training_curves(history, plots.method_styles(coders["method"]))
stage.figure(fig, "curves", frame, "What coders leave unexplained, and how many latents fire, on validation images.")

# %% needs="!checkpoint"
table = stage.table(epochs(history), "epochs", "Every epoch of every coder: training loss and validation measures.")
table.groupby(["method", "seed"], sort=False).tail(1)

# %% needs="!checkpoint"
gains = late_gains(history)
said = f"In the last tenth of the steps the validation FVU of {len(gains)} coders changed by"
if len(gains):
    stage.say("training", f"{said} {-gains.max():+.1%} to {-gains.min():+.1%} of itself.")

# %% [markdown] needs="!checkpoint"
# The learning rate falls to nothing over the steps, so every coder is best at its last one, and what is gained there is little. *More
# steps* lower the FVU further, but find no more errors on the demo (three times as many: average precision .994 for .991).

# %% [markdown]
# ## What each method explains
#
# FVU is the share of the target's variance that is left unexplained: 0 is perfect, 1 is the mean. An FVU of `x` and one
# of `y` measure different things; compare them only within a target. L0 is measured, not set: compare methods only where
# it is about the same.

# %%
headings = {"method": "method", "seed": "seed", "target": "learns", "n_latents": "latents", "l0_val": "L0 (val)"}
headings |= {"fvu_val": "FVU (val)", "dead": "dead share", "best_step": "best step", "reason": "remark"}
stage.table(coders, "coders", "Coders by what they learn: x, the embedding, or y, the classifier's layer.", headings)

# %% [markdown]
# ## Answer
#
# The tables say what is left unexplained at the measured L0. A low FVU does not mean that a feature is about physics:
# notebook 04 compares the methods on test images and, where the truth is known, asks which causes their features find.

# %%
n_ok = int((coders["status"] == "ok").sum())
names = [method.name for method in config.methods]
stage.finish(provides=provided(coders, data), methods=names, seeds=seeds, n_ok=n_ok, n_skipped=len(coders) - n_ok)
