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
# # 02 · Can a small head on frozen embeddings tell plausible from implausible images, and by what hidden layer?
#
# A picture can look right to an image encoder and still break physics. If the encoder saw the error at all, a small
# head on its embedding `x` can learn to say so. The head's hidden layer `y` is what notebook 03 takes apart: it holds
# what the decision needs, and little else.
#
# *Needs* the embeddings of notebook 01, with labels or classes; a classifier that is given needs none. *Makes*
# `classifier/`, and `y.npy` and `logits.npy` for every image. *Takes* about 15 seconds on two cores for the demo. Without
# targets the notebook is left out, and later notebooks work with `x` alone.

# %% tags=["parameters"] needs="targets|classifier classify" settings="mtlib.learn.config:ClassifierConfig"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
classify = True  # false: no classifier, so coders learn x alone
classifier = ""  # instead of training one: a saved classifier/ folder, or clip_classifier.pt of Matryoshka Transcoders
seed = 0  # of the weights and of the order of images
d_hidden = 256  # width of the hidden layer y
epochs = 20  # passes over the train images; the epoch with the lowest validation loss is kept
classifier_lr = 1e-3  # learning rate, cosine decay
classifier_batch = 64  # images per step
weight_decay = 1e-2  # of AdamW
dropout = 0.0  # share of y that is left out in training
permute_labels = False  # the null: labels permuted within family and split, here and in everything that follows

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib import plots
from mtlib.embed import store
from mtlib.learn import scores
from mtlib.learn.classifier import (
    describe,
    fit_classifier,
    given_classifier,
    group_names,
    labelled,
    with_permuted_labels,
)
from mtlib.learn.config import ClassifierConfig
from mtlib.run.stage import Stage

# %%
plots.use_style()
stage = Stage("02_classify", globals())
config = stage.settings(ClassifierConfig)
data = store.open_data(stage)

# %% [markdown] needs="permute_labels"
# ## A null run
#
# The labels are permuted, so nothing that follows can be about errors.

# %% needs="permute_labels"
data = with_permuted_labels(data, seed)
store.save_array(stage.out / "labels.npy", data.labels())

# %% [markdown]
# ## What there is to learn
#
# The head fits the train images. The validation images choose the epoch and the temperature of the logits. All rates
# below are of test images, which nothing else has seen.

# %%
labels, names, rows = labelled(data)
train, val, test = rows["train"], rows["val"], rows["test"]
pd.DataFrame({split: np.bincount(labels[at], minlength=len(names)) for split, at in rows.items()}, index=names)

# %% [markdown]
# ## The head
#
# `x` is standardised by the train images, then `y = relu(x W + b)` and one linear layer. After training, the logits are
# divided by the temperature that fits the validation images best, so that they can be read as probabilities. A head that
# was trained elsewhere is taken as it is, without a temperature.

# %% needs="!classifier"
model, history = fit_classifier(data.x, labels, train, val, config)
model.save(stage.out / "classifier", **describe(config, history))

# %% needs="classifier"
model = given_classifier(classifier, data.x.shape[1], names)
model.save(stage.out / "classifier", given=Path(classifier).name)

# %%
y, logits = model.predict(data.x)
store.save_array(stage.out / "y.npy", y)
store.save_array(stage.out / "logits.npy", logits)
model

# %% needs="!classifier"
caption = "Cross entropy after each epoch; the weights of the epoch with the lowest validation loss are kept."
stage.figure(scores.loss(history), "loss", history, caption)

# %% [markdown] needs="!classifier"
# Where the two curves part, the head begins to learn its train images by heart.

# %% [markdown] needs="targets"
# ## How well it tells them apart
#
# Accuracy with Wilson intervals and AUROC with DeLong intervals, for all test images and for each family or class.

# %% needs="targets"
metrics = scores.scores(labels[test], logits[test], group_names(data)[test])
stage.table(metrics, "metrics", "The classifier on test images, with 95% intervals.", scores.HEADINGS)

# %% needs="targets"
whole = metrics.iloc[0]
interval = f"[{whole.accuracy_low:.3f}, {whole.accuracy_high:.3f}]"
at_chance = f"always saying the commonest label: {whole.commonest:.3f}"
stage.say("accuracy", f"Test accuracy {whole.accuracy:.3f} {interval} of {whole.n} images; {at_chance}.")

# %% [markdown] needs="targets"
# A family far below the others is one whose errors the encoder hardly sees: nothing downstream can find them.
#
# For plausibility, the ROC curve shows every trade between missed errors and false alarms; for classes, the confusion
# table shows which are taken for which.

# %% needs="targets"
fig, frame, name, caption = scores.decisions(labels[test], logits[test], names)
stage.figure(fig, name, frame, caption)

# %% [markdown] needs="targets"
# ## Can its probabilities be believed?
#
# Each point is a tenth of the test images, in order of predicted probability. On the dashed line the prediction is the
# share that comes true; the bars are Wilson 95% intervals.

# %% needs="targets"
fig, frame = scores.calibration(labels[test], logits[test])
stage.figure(fig, "calibration", frame, "Predicted probability against the share that came true, with 95% intervals.")

# %% [markdown] needs="targets"
# Bars that miss the line say that a probability of that size is not to be taken at its word. The calibration error in
# the table above is the mean distance.

# %% [markdown] needs="labels targets"
# ## Where the logits lie
#
# Two separate heaps in a family mean that its errors are easy; one heap means that the head cannot see them.

# %% needs="labels targets"
fig, frame = scores.logit_histogram(labels[test], logits[test], group_names(data)[test])
stage.figure(fig, "logits", frame, "Logits of plausible and implausible test images, by family.")

# %% [markdown] needs="few !classifier"
# ## Few images: five folds
#
# With few labelled images one split says little. Every image is then tested once by a head that has not seen it or
# its group, and the interval is over the folds.

# %% needs="few !classifier"
cross = scores.folds(data.x, labels, data.manifest["group"].to_numpy(dtype=str), config)
stage.table(cross, "folds", "Five folds, each tested by a head that has not seen its groups.", scores.HEADINGS)

# %% [markdown] needs="few !classifier"
# Labels of collected pictures may follow their source rather than their content; folds cannot tell which.

# %% [markdown]
# ## Answer
#
# The numbers above say how far a small head gets; `y` is the layer it decides by. Limits: the head sees only what the
# encoder kept, and a label can be predicted for reasons that have nothing to do with physics. Next, notebook 03 learns
# sparse features of `x` and of `y`.

# %%
facts = dict(class_names=names, permuted=permute_labels, d_hidden=model.d_hidden, n_outputs=model.n_outputs)
stage.finish(provides=["head"] + ["judged"] * (data.facts["labels"] == "plausibility"), status="ok", **facts)
