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
# # Vision model · Can a model that is trained here from random weights be taken apart as well?
#
# The AlexNet-Transformer learns the labels of the images of notebook 01: convolutions turn pixels into tokens on a grid,
# transformer blocks read them, a last layer names the class. It is the published model or, by `vision_variant`, ours. What
# its middle holds is not what a CLIP embedding holds, and nobody told it any words. The residual stream after one block becomes the `x` that later notebooks take apart, a row for
# each token; each image keeps its embedding of 01, in whose space features are named.
#
# *Needs* notebook 01 with image files that have labels or classes. *Makes* `vision/` (the model), and `x.npy`, the tokens
# of every image. *Takes* about half an hour for 3,000 images. A profile that lists it runs it after 01; the profile alexnet
# is the published system.

# %% tags=["parameters"] needs="images targets" after="01_embed" settings="mtlib.learn.config:VisionTraining"
run_dir = "runs/alexnet"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the weights, the order of images and their mirrors
vision_variant = "published"  # or "positions", ours: learned positions, GELU, a BatchNorm for every convolution
vision_checkpoint = ""  # a checkpoint of the published model: nothing is trained; its classes are these, sorted by name
vision_blocks = 16  # transformer blocks
vision_layer = 6  # the block after which the tokens are read; 0 is the first
vision_dropout = 0.5  # in every block
vision_epochs = 10  # passes over the train images; the epoch with the lowest validation loss is kept
vision_batch = 0  # images per step; 0: as the variant, 64 or 32
vision_lr = 0.0  # learning rate; 0: as the variant, 1e-4 throughout, or 3e-4 with warm-up and cosine decay
permute_labels = False  # the null: labels permuted within family and split, here and in everything that follows

# %%
from mtlib import plots
from mtlib.embed import store
from mtlib.embed.vision import VisionConfig
from mtlib.learn import scores
from mtlib.learn.classifier import group_names, labelled, with_permuted_labels
from mtlib.learn.config import VisionTraining
from mtlib.learn.vision import fit_vision, read_pixels, take_vision, write_tokens
from mtlib.run.stage import Stage

plots.use_style()
stage = Stage("vision_model", globals())
training = stage.settings(VisionTraining)
data = store.open_data(stage)

# %% [markdown] needs="permute_labels"
# ## A null run
#
# The labels are permuted, so nothing that follows can be about errors.

# %% needs="permute_labels"
data = with_permuted_labels(data, seed)
store.save_array(stage.out / "labels.npy", data.labels())

# %% [markdown]
# ## The model
#
# AlexNet's convolutions end in a grid of places, one token each. Every block adds what attention and two layers find to
# the stream of tokens, and the classes are read from the last block.

# %%
labels, names, rows = labelled(data)
sizes = dict(blocks=vision_blocks, dropout=vision_dropout, layer=vision_layer)
model_config = VisionConfig(n_classes=len(names), variant=vision_variant, **sizes)
model_config

# %% [markdown]
# ## Training
#
# The validation images choose the epoch. An interrupted run goes on from its last checkpoint and ends with the same bytes.
# The published images are not mirrored or moved; the variant mirrors half of them.

# %%
pixels = read_pixels(data, stage.out / "shards" / "pixels.npy", model_config)
train, val, test = rows["train"], rows["val"], rows["test"]
folders = stage.out / "vision", stage.out / "checkpoint"

# %% needs="vision_checkpoint"
model = take_vision(vision_checkpoint, stage.root, len(names), vision_layer, folders[0])

# %% needs="!vision_checkpoint"
model, history = fit_vision(model_config, pixels, labels, train, val, training, *folders)

# %% needs="!vision_checkpoint"
caption = "Cross entropy of the vision model after each epoch; the epoch with the lowest validation loss is kept."
stage.figure(scores.loss(history), "loss", history, caption)

# %% [markdown]
# ## How well it sees
#
# Rates of test images, which training has not seen.

# %%
logits, facts = write_tokens(model, pixels, stage.out / "x.npy")
logits = scores.one_logit(logits)
metrics = scores.scores(labels[test], logits[test], group_names(data)[test])
stage.table(metrics, "metrics", "The vision model on test images, with 95% intervals.", scores.HEADINGS)

# %%
whole = metrics.iloc[0]
interval = f"[{whole.accuracy_low:.3f}, {whole.accuracy_high:.3f}]"
stage.say("accuracy", f"The vision model: accuracy {whole.accuracy:.3f} {interval} of {whole.n} test images.")

# %%
fig, frame, name, caption = scores.decisions(labels[test], logits[test], names)
stage.figure(fig, name, frame, caption)

# %%
fig, frame = scores.calibration(labels[test], logits[test])
stage.figure(fig, "calibration", frame, "Predicted probability against the share that came true, with 95% intervals.")

# %% needs="labels"
fig, frame = scores.logit_histogram(labels[test], logits[test], group_names(data)[test])
stage.figure(fig, "logits", frame, "Logits of plausible and implausible test images, by family.")

# %% [markdown]
# ## Answer
#
# A model near chance has little in its stream to be found; one near its train accuracy has learned something that holds.
# There is no hidden layer `y`, since the classes are read from all tokens at once: only autoencoders of `x` are trained.
# Next, notebook 03 learns sparse features of the tokens, and the notebook `tokens` shows what one of them holds.

# %%
stage.finish(provides=["vision"], x=facts, class_names=names, permuted=permute_labels)
