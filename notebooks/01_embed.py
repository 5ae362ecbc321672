# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · What does the image encoder see, and is the physics in it?
#
# Everything in this repo is read from one vector per image: the embedding `x` of a frozen image encoder. If an error of physics leaves no
# trace in `x`, no classifier and no sparse feature can find it later. So the first question is what `x` holds.
#
# *Needs* nothing for the demo: it draws its own scenes and brings its own small CLIP. Or images (`images`: a folder, a table, shards
# or a named data set), or embeddings made elsewhere (`embeddings`).
# *Makes* `embeddings/` (one row per usable image, one line of `manifest.parquet` per file found, a vocabulary of phrases in the same
# space) and the encoder's report card. With `layer`, the rows are the tokens of that layer instead of final embeddings.
# *Takes* about two minutes on two cores for the demo; otherwise the time of the encoder.

# %% tags=["parameters"] settings="mtlib.embed.sources:EmbedConfig" before="mtlib.embed.sources:look_before"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
images = ""  # folder (.tar shards in it count as folders), table (.csv, .tsv, .parquet), "hf:..." or "torchvision:..."; "scenes" or empty: draw scenes
embeddings = ""  # made elsewhere, instead of images: .npy, .npz (N, D), LMDB, a folder of .pt, or a .json that names several (MonoLoss)
labels = ""  # one class per row of embeddings (train, val, test in this order): .txt, .npy, or a column of a .csv or .parquet
val_embeddings = ""  # rows of the val split in a file of their own; then embeddings are train
test_embeddings = ""  # rows of the test split in a file of their own; may be the file of val
vocabulary = ""  # with embeddings: .npy (V, D) of texts in the same space, or words for their encoder; else phrases (.txt, .csv) or "wordfreq:20000"; empty: packaged
vocabulary_names = ""  # text file with a line per row of vocabulary; empty: the .txt beside it that fits
templates = []  # prompts around the phrases, e.g. "a photo of {}"; empty: the packaged ones
encoder = ""  # an open_clip model name, "demo" (bundled, of drawings; scenes need no other), "timm/<name>", "local-dir:<folder>", "hf-hub:<repository>" or "alexnet:<folder or file>"
pretrained = ""  # for an open_clip name: one of its tags, or the path of a checkpoint
encoder_precision = "float32"  # or "bf16": faster on many processors
layer = ""  # empty: the final embedding; a block number ("11", "-1") or a module's path: its activations
tokens = "cls"  # of the layer: "cls", "patches", "all" or "mean" (over the patches)
n_scenes = 8000  # labelled scenes to draw, half of them implausible
n_per_generator = 400  # new images of each simulated generator
seed = 0  # of the scenes, the splits and the samples shown
batch_size = 256  # images per forward pass
max_images = 0  # use only so many images of a folder, evenly over labels and classes; 0: all
max_bad_fraction = 0.2  # stop when a larger share of the files cannot be used
splits = [0.6, 0.2, 0.2]  # train, val, test
workers = 2  # threads that decode images; processes that draw scenes, or that embed with another engine
pictures = True  # false: no figure, collage or notebook of the report shows an image, so that it may be published
engine = "local"  # "local" (this process), "processes" or "ray"; the rows are the same

# %%
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from mtlib import plots
from mtlib.embed import sources, store
from mtlib.embed.given.folders import understood
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import NOT_READ
from mtlib.learn.classifier import learnable
from mtlib.measure.probes import encoder_card
from mtlib.run.stage import Stage
from mtlib.scenes.dataset import twins

# %%
plots.use_style()
stage = Stage("01_embed", globals())
config = stage.settings(sources.EmbedConfig)

# %% [markdown]
# ## The rows
#
# Scenes are drawn from the seed: nine families, each with one known error, under a background, palette, style, scale and position that
# have nothing to do with physics. Four simulated generators fail at known rates. A folder of images is listed without following
# links; each file is opened by one careful loader, whose pixels are the ones that every later step shows.
# Whatever cannot be used gets a line with its reason and no row, and never shifts the others. Before any image is opened, look at
# what the names were taken for: labels, classes and splits that are not in this table do not exist for this run.

# %% needs="!embeddings"
folder, truth = sources.images_of(config, stage.root, stage.out)
found = find_images(folder)
caption = "What the names of files, folders and columns were taken for."
stage.table(understood(*found), "understood", caption, {"what": "what", "count": "count", "which": "which"})

# %% needs="!embeddings"
tower = config.tower()
manifest, facts = sources.from_images(config, tower, folder, stage.out, truth, found)

# %% needs="embeddings"
tower = None
manifest, facts = sources.from_arrays(config, stage.root, stage.out)

# %%
data = store.load_parts(stage.out, facts).per_image()  # with tokens, an image is below the mean of its rows
assert len(data.x) == (manifest["status"] == "ok").sum() == facts["n_rows"] / facts.get("tokens_per_image", 1)
made_by = f"{facts['encoder']['name'] or 'an encoder that is not known'} {facts['encoder']['pretrained']}".strip()
width, n_tokens = data.x.shape[1], facts.get("tokens_per_image", 1)
rows = f"{len(data.x):,} images, {n_tokens} x {width} numbers each, by {made_by}; {len(data.phrases):,} phrases."
stage.say("rows", rows)

# %%
files = manifest["status"].value_counts().rename_axis("status").reset_index(name="count")
stage.table(files, "files", "Files found, and what became of them.", {"status": "status", "count": "files"})

# %%
remark = (manifest["detail"] != "") & ~manifest["status"].isin(NOT_READ)
manifest.loc[remark, ["path", "status", "detail"]].head(20)  # the files that need one

# %% [markdown]
# ## The splits
#
# Groups are split, never single rows: images of one scene and files with equal bytes stay together, and every label and class is
# divided alike. Train is what classifier and coders fit, validation what thresholds and names are chosen on, test what every reported
# rate is measured on. Images of generators are *unlabelled*: notebook 07 applies the finished detector to them.

# %%
of, label = data.manifest["split"], pd.Series(data.label_names, name="label")
splits = pd.crosstab(of, label).reindex([name for name in store.ALL_SPLITS if name in set(of)])
splits["groups"] = data.manifest.groupby("split")["group"].nunique()
splits["duplicates"] = (data.manifest["duplicate_of"] != "").groupby(of).sum()
in_one = data.manifest[of != "unlabelled"].groupby("group")["split"].nunique() == 1
assert in_one.all(), "a group stands in two splits"
stage.table(splits.reset_index(), "splits", "Images of each split; a file that repeats another counts once.")

# %% [markdown] needs="pictures !embeddings"
# ## What the images look like
#
# Some of every class and label. In the demo every pair is the same scene, drawn plausibly and with its one error. A person sees the difference at a glance; that the
# two are otherwise alike is what makes it hard for an encoder.

# %% needs="pictures !embeddings images !images=scenes"
lines, paths = data.sample(seed=seed), data.manifest["path"]
shown = pd.DataFrame({"line": name.replace("\n", " "), "path": paths[r]} for name in lines for r in lines[name])
names = [name.replace("_", " ")[:48] or "images" for name in lines]
fig = plots.image_grid([[data.thumbnail(r) for r in rows] for rows in lines.values()], names=names)
stage.figure(fig, "images", shown, "Some images of the run.")

# %% needs="pictures !embeddings !images|images=scenes"
pairs, shown = twins(truth, seed=seed)
names = [cause.replace("_", "\n") for cause in pairs]
fig = plots.image_grid(list(pairs.values()), names=names, heads=["plausible", "implausible"] * 3, side=1.5)
stage.figure(fig, "images", shown, "Some images of the run.")

# %% [markdown]
# ## Where they lie
#
# The two directions of largest variance. What the encoder cares about most shows here; a difference of a finger rarely does.

# %%
rng = np.random.default_rng(seed)
fit = np.sort(rng.permutation(data.rows("train"))[:20_000])
rows = np.sort(rng.permutation(data.rows("all"))[:3000])
seen = np.resize(np.asarray(data.x[fit], np.float64), (max(2, len(fit)), width))  # one train image counts twice
plane = PCA(2, svd_solver="full").fit(seen)
points = data.manifest.loc[rows, ["path"]]
points[["pc1", "pc2"]] = plane.transform(data.x[rows])
points["group"] = (data.manifest["class_name"] if data.truth is None else data.truth["family"])[rows]
points["label"] = data.label_names[rows]
fig = plots.scatter(points, "pc1", "pc2", "group", "label", seed)
stage.figure(fig, "map", points, "The embeddings in the plane of their two largest principal components.")

# %% [markdown]
# ## The encoder's report card
#
# A linear probe is the plainest reader of `x`: what it finds, later notebooks can hope to find; what it misses, they
# cannot be blamed for. It is fitted on train rows and scored on test rows. With the truth at hand, each cause also gets a probe of its
# own, against plausible images of the *same* family, since telling a hand from a glass is no merit. Zero-shot naming asks
# whether the nearest text names what the image shows.

# %%
card = encoder_card(data, lambda: tower, seed)
headings = {"family": "family", "cause": "cause", "captioned": "captioned", "n_test": "test images"}
headings |= {
    "probe_accuracy": "probe accuracy",
    "probe_auroc": "probe AUROC",
    "zero_shot_family": "nearest text right",
    "note": "note",
}
caption = "A linear probe on the embeddings, and the nearest text, on images that neither was fitted on."
stage.table(card, "encoder", caption, headings)

# %% [markdown]
# ## Answer, limits, next
#
# The card says how much of the physics a line can read from `x`, and that is the ceiling for what follows. It does not say that the
# encoder *uses* it, nor where it sits: one error may be spread over many dimensions. For photographs whose labels come with
# their source (real against generated), a probe may read the source instead of the physics; only a truth like the demo's tells them apart.
# Next: notebook 02 trains the small classifier whose hidden layer is taken apart in notebook 03.

# %%
told = sources.doubt(config)
stage.finish(provides=sources.provided(data) + learnable(store.load_parts(stage.out, facts)), told=told, **facts)
