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
# *Needs* the embeddings of notebook 01. *Makes* `classifier/`, and `y.npy` and `logits.npy` for every image.
# *Takes* about 15 seconds on two cores for the demo. Without labels there is nothing to learn: the notebook says so, and later
# notebooks work with `x` alone. With `vision`, a model of its own is trained on the pixels instead (about half an hour for
# 3,000 images), and the tokens of one of its blocks are the `x` that later notebooks take apart.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the weights and of the order of images
d_hidden = 256  # width of the hidden layer y
epochs = 20  # passes over the train images; the epoch with the lowest validation loss is kept
classifier_lr = 1e-3  # learning rate, cosine decay
classifier_batch = 64  # images per step
weight_decay = 1e-2  # of AdamW
permute_labels = False  # the null: labels permuted within family and split, here and in everything that follows
vision = ""  # "alexnet": train the AlexNet-Transformer on the images instead; the tokens of a block become x
vision_blocks = 16  # its transformer blocks
vision_layer = 6  # the block after which the tokens are read; 0 is the first
vision_epochs = 10  # passes over the train images; the epoch with the lowest validation loss is kept
vision_batch = 32  # images per step
vision_lr = 3e-4  # learning rate, with warm-up and cosine decay

# %%
import numpy as np
from IPython.display import display

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.vision import VisionConfig
from mtlib.learn import figures
from mtlib.learn.classifier import ClassifierConfig, describe, fit_classifier
from mtlib.learn.classifier_scores import folds, scores, targets, why_not
from mtlib.learn.null import permute_labels as permuted
from mtlib.learn.train_vision import VisionTraining, train_and_read
from mtlib.run.stage import Stage

plots.use_style()
config = ClassifierConfig(d_hidden, epochs, classifier_lr, classifier_batch, weight_decay, seed=seed)
params = dict(seed=seed, d_hidden=d_hidden, epochs=epochs, classifier_lr=classifier_lr)
params |= dict(classifier_batch=classifier_batch, weight_decay=weight_decay, permute_labels=permute_labels)
training = VisionTraining(vision_epochs, vision_batch, vision_lr, seed=seed)
params |= dict(vision=vision, vision_blocks=vision_blocks, vision_layer=vision_layer, vision_epochs=vision_epochs)
params |= dict(vision_batch=vision_batch, vision_lr=vision_lr)
stage = Stage("02_classify", run_dir, stage_dir, params=params)

# %% [markdown]
# ## What there is to learn
#
# The head fits the train images. The validation images choose the epoch and the temperature of the logits. All rates
# below are of test images, which nothing else has seen.

# %%
data = store.open_data(stage)
if permute_labels:
    data = permuted(data, seed)
    store.save_array(stage.out / "labels.npy", data.labels())
    print("A null run: the labels are permuted, so nothing that follows can be about errors.")
kind = data.facts["labels"]
labels, names = targets(data.manifest, kind)
train, val, test = (rows[labels[rows] >= 0] for rows in map(data.rows, ("train", "val", "test")))
reason = why_not(labels, train, val, data.tokens)
ready = not reason
print(
    f"labels: {kind}; {len(train)} train, {len(val)} val, {len(test)} test images; {reason or 'classes: ' + ', '.join(names)}"
)

# %% [markdown]
# ## The head
#
# `x` is standardised by the train images, then `y = relu(x W + b)` and one linear layer. After training, the logits are
# divided by the temperature that fits the validation images best, so that they can be read as probabilities.
#
# With `vision` there is no head: a convolutional network makes tokens of the pixels, a transformer reads them, and both
# are trained here from random weights. Its classes are read from the last block; `x` is the residual stream of an earlier
# one, a row for each token, and each image keeps the embedding of 01 for naming.

# %%
if ready and vision:
    eyes = VisionConfig(len(names), vision, vision_blocks, layer=vision_layer)
    logits, history, x_facts = train_and_read(data, labels, train, val, eyes, training, stage.out)
    store.save_array(stage.out / "logits.npy", logits)
    print(f"x: {x_facts['tokens_per_image']} rows of width {x_facts['d_in']} per image, after {x_facts['layer']}.")

# %%
if ready and not vision:
    model, history = fit_classifier(data.x, labels, train, val, config)
    model.save(stage.out / "classifier", **describe(config, history))
    y, logits = model.predict(data.x)
    store.save_array(stage.out / "y.npy", y)
    store.save_array(stage.out / "logits.npy", logits)

# %%
if ready:
    plots.save(stage, figures.loss(history), "loss", history)

# %%
if ready:
    best = history.loc[history["val_loss"].idxmin()]
    print(f"Lowest validation loss {best['val_loss']:.3f} nats, at epoch {best['epoch']:.0f} of {len(history)}.")
if ready and not vision:
    print(f"y has {y.shape[1]} units; {np.mean(y > 0):.0%} of its values are above 0.")

# %% [markdown]
# ## How well it tells them apart
#
# Accuracy with Wilson intervals and AUROC with DeLong intervals, for all test images and for each family or class.
# A family far below the others is one whose errors the encoder hardly sees: nothing downstream can find them.

# %%
tested = ready and len(test) > 0
if tested:
    group = (data.manifest["class_name"] if data.truth is None else data.truth["family"]).to_numpy(dtype=str)[test]
    metrics = scores(labels[test], logits[test], group if len(set(group)) > 1 else None)
    plots.table(stage, metrics, "metrics")
    display(metrics.round(3))

# %%
if tested:
    whole, rest = metrics.iloc[0], metrics.iloc[1:]
    print(f"Test accuracy {whole.accuracy:.3f} [{whole.accuracy_low:.3f}, {whole.accuracy_high:.3f}].")
    if len(rest):
        weakest = rest.loc[rest["accuracy"].idxmin()]
        print(f"Weakest group: {weakest.group}, {weakest.accuracy:.3f} of {weakest.n} images.")

# %% [markdown]
# For plausibility, the ROC curve shows every trade between missed errors and false alarms; for classes, the confusion
# table shows which are taken for which.

# %%
if tested and logits.ndim == 1:
    fig, frame = figures.roc(labels[test], logits[test])
    plots.save(stage, fig, "roc", frame)
elif tested:
    fig, frame = figures.confusion(labels[test], logits[test], names)
    plots.save(stage, fig, "confusion", frame)

# %% [markdown]
# ## Can its probabilities be believed?
#
# Each point is a tenth of the test images, in order of predicted probability. On the dashed line the prediction is the
# share that comes true; the bars are Wilson 95% intervals.

# %%
if tested:
    fig, frame = figures.calibration(labels[test], logits[test])
    plots.save(stage, fig, "calibration", frame)

# %%
if tested:
    inside = frame["predicted"].between(frame["low"], frame["high"]).sum()
    print(f"Calibration error {whole.ece:.3f}; {inside} of {len(frame)} intervals hold the predicted share.")

# %% [markdown]
# ## Where the logits lie
#
# Two separate heaps in a family mean that its errors are easy; one heap means that the head cannot see them.

# %%
if tested and logits.ndim == 1:
    fig, frame = figures.logit_histogram(labels[test], logits[test], group)
    plots.save(stage, fig, "logits", frame)

# %% [markdown]
# ## Few images: five folds
#
# Under 2,000 labelled images one split says little. Every image is then tested once by a head that has not seen it or
# its group, and the interval is over the folds.

# %%
few = ready and not vision and (labels >= 0).sum() < 2000
if few:
    cross = folds(data.x, labels, data.manifest["group"].to_numpy(dtype=str), config)
    plots.table(stage, cross, "folds")
    display(cross.round(3))

# %%
if few:
    mean = cross.iloc[-1]
    print(f"Accuracy over folds {mean.accuracy:.3f} [{mean.accuracy_low:.3f}, {mean.accuracy_high:.3f}].")
    print("Labels of collected pictures may follow their source rather than their content; this cannot tell which.")

# %% [markdown]
# ## Answer
#
# The numbers above say how far a small head gets; `y` is the layer it decides by. Limits: the head sees only what the
# encoder kept, and a label can be predicted for reasons that have nothing to do with physics. Next, notebook 03 learns
# sparse features of `x` and of `y`.

# %%
has_y = ready and not vision
facts = dict(status="ok" if has_y else "vision" if ready else "skipped", class_names=names, permuted=permute_labels)
facts |= dict(d_hidden=d_hidden if has_y else 0, n_outputs=model.n_outputs if has_y else 0)
facts |= dict(vision=vision, x=x_facts) if ready and vision else {}
reason = "the vision model reads its classes from all tokens at once" if ready and vision else reason
print("Without a hidden layer y: " + reason if reason else "classifier/, y.npy and logits.npy are written.")
judged = has_y and data.facts["labels"] == "plausibility"
provides = ["head"] * has_y + ["judged"] * judged + ["vision"] * (ready and bool(vision))
stage.finish(provides=provides, reason=reason, **facts)
