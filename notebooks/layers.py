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
# # Layers · Which layer of the encoder is fit for a sparse coder?
#
# SAE-for-CLIP's first step: before a coder is trained, the class token after every block is looked at. Where all images look
# alike there is nothing to take apart; where they differ, how much do a linear probe and a small coder find? A tower without
# a class token is read at the mean of its places.
#
# *Needs* a run up to 01 whose images are files. *Makes* the table `layers_card.csv` and the figures below. *Takes* about a minute on two
# cores for the demo's encoder.

# %% tags=["parameters"] needs="images" after="01_embed"
run_dir = "runs/demo"  # folder of the run whose images and encoder are looked at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
layers = []  # blocks ("11") or modules of the tower; empty: every block
layer_tokens = ""  # "" the class token, or the mean where there is none; "cls" or "mean"
n_layer_images = 2000  # images read, evenly from train and validation
layer_preset = "topk"  # the small coder that every layer is tried with ...
layer_latents = 1024  # ... its latents ...
layer_l0 = 32  # ... how many of them are active ...
layer_steps = 300  # ... and its training
layer_lr = 1e-3  # its learning rate

# %%
import numpy as np
import seaborn as sns

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.manifest import image_classes
from mtlib.features import layers as by_layer
from mtlib.run.stage import Stage

plots.use_style()
stage = Stage("layers", globals())
data = store.open_data(stage)

# %% [markdown]
# ## One pass over the images
#
# Hooks read all layers at once, one row per image.

# %%
rows, val = by_layer.sampled(data, n_layer_images)
tower = by_layer.image_tower(data)
found = by_layer.read_layers(tower, by_layer.find_layers(tower, layers, layer_tokens), data, rows)
classes = image_classes(data.manifest, data.tokens)[0]
answers = {"class": None if classes is None else classes[rows], "label": data.labels(rows)}

# %% [markdown]
# ## Every layer
#
# *Distance* is the mean cosine distance of two images: near 0 the images share nearly everything. The probes are linear and, like
# the coder, judged on validation images: can the class, can plausible and implausible be read here? The coder is small and shortly
# trained, the same at every layer: a low FVU says that few latents say much of a layer, not that they mean something.

# %%
coder = {"n_latents": layer_latents, "k": layer_l0}
train = {"steps": layer_steps, "lr": layer_lr, "batch": 256, "epochs": 1, "val_every": 50}
table = by_layer.layer_card(found, val, answers, layer_preset, coder, train, stage.out / "coders")
table = table.dropna(axis=1, how="all")

# %%
headings = {"layer": "layer", "d": "width", "mean_abs": "mean size", "std": "spread", "norm": "row norm"}
headings |= {"active": "share above 0.001", "distance": "distance", "probe_class": "probe: class"}
headings |= {"probe_label": "probe: label", "fvu": "FVU", "l0": "L0", "dead": "dead"}
shown = {column: name for column, name in headings.items() if column in table}
stage.table(table, "card", "Every layer, measured on the same images.", shown)

# %%
kept = [c for c in ("norm", "distance", "probe_class", "probe_label", "fvu") if c in table]
long = table.rename(columns=headings).assign(place=np.arange(len(table)))
long = long.melt("place", [headings[c] for c in kept], var_name="of").dropna()
look = {"x": "place", "y": "value", "col": "of", "facet_kws": {"sharey": False}}
grid = plots.facets(sns.relplot, long, kind="line", marker="o", errorbar=None, height=2.6, **look)
grid.set_axis_labels("layer, from the first", "")
stage.figure(grid.figure, "measures", long, "From the first layer to the last: what is measured of each.")

# %% [markdown]
# ## Answer
#
# A layer is worth a coder where images differ, where what is asked for can be read by a line, and where few latents rebuild it:
# give its name as `layer` to a run. Limits: one small coder and one seed; where the class token takes shape late, early layers may hold
# the same in their patches.

# %%
stage.finish(layers=list(found), n_images=len(rows))
