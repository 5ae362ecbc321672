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

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
images = ""  # folder (.tar shards in it count as folders), table (.csv, .parquet), "hf:..." or "torchvision:..."; "scenes" or empty: draw scenes
embeddings = ""  # .npy, .npz (N, D) or LMDB of embeddings made elsewhere, instead of images
vocabulary = ""  # with embeddings: .npy (V, D) of texts in the same space; else phrases (.txt, .csv) or "wordfreq:20000"; empty: packaged
vocabulary_names = ""  # text file with a line per row of vocabulary; empty: the one .txt beside it that fits
templates = []  # prompts around the phrases, e.g. "a photo of {}"; empty: the packaged ones
encoder = "demo"  # "demo", an open_clip model name, "timm/<name>", "local-dir:<folder>" or "hf-hub:<repository>"
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
import pandas as pd
from IPython.display import display
from matplotlib import pyplot as plt

from mtlib import plots
from mtlib.embed import card, sources, store
from mtlib.embed import pictures as sheets
from mtlib.embed.encoders import Encoder
from mtlib.run.stage import Stage
from mtlib.scenes.causes import CAUSES

plots.use_style()
params = dict(images=images, embeddings=embeddings, vocabulary=vocabulary, vocabulary_names=vocabulary_names)
params |= dict(n_scenes=n_scenes, n_per_generator=n_per_generator, seed=seed, batch_size=batch_size, workers=workers)
params |= dict(max_images=max_images, max_bad_fraction=max_bad_fraction, splits=splits)
params |= dict(engine=engine, templates=templates)
config = sources.EmbedConfig(**params)
model = dict(precision=encoder_precision, layer=layer, tokens=tokens)
stage = Stage(
    "01_embed",
    run_dir,
    stage_dir,
    params=params | model | dict(encoder=encoder, pretrained=pretrained, pictures=pictures),
)
print(f"source: {config.source}")

# %% [markdown]
# ## The rows
#
# Scenes are drawn from the seed: nine families, each with one known error, under a background, palette, style, scale and position that
# have nothing to do with physics. Four simulated generators fail at known rates. A folder of images is listed without following
# links; each file is opened by one careful loader, whose pixels are the ones that every later step shows.
# Whatever cannot be used gets a line with its reason and no row, and never shifts the others.

# %%
truth = sources.render_scenes(config, stage.out) if config.source == "scenes" else None
tower = Encoder.load(encoder, pretrained, **model) if config.source != "arrays" else None
if config.source == "arrays":
    manifest, facts = sources.from_arrays(config, stage.root, stage.out)
else:
    folder = stage.out / "images" if config.source == "scenes" else stage.root / images
    folder = sources.import_images(config, folder, stage.out)
    manifest, facts = sources.from_images(config, tower, folder, stage.out, truth)

# %%
facts |= dict(pictures=pictures)
data = store.load_parts(stage.out, facts)
made_by = f"encoder {encoder} {pretrained}".strip() if tower is not None else "an encoder that is not known here"
print(f"{len(data.x)} rows of width {data.x.shape[1]}, made by {made_by}; labels: {facts['labels']}")
if data.tokens > 1:
    print(
        f"{data.tokens} rows per image: {facts['tokens']} tokens of {facts['layer']}; below, an image is the mean of its rows"
    )
print(f"{len(data.phrases)} phrases in the same space: {data.phrases['kind'].value_counts().to_dict()}")
assert len(data.x) == (manifest["status"] == "ok").sum() * data.tokens == facts["n_rows"]
data = data.per_image()

# %%
files = manifest["status"].value_counts().rename_axis("status").reset_index(name="count")
plots.table(stage, files, "files")
display(files)
remark = (manifest["detail"] != "") & ~manifest["status"].isin(["not sampled", "annotation"])
notes = manifest.loc[remark, ["path", "status", "detail"]]
display(notes.head(20)) if len(notes) else print("no file needs a remark")

# %% [markdown]
# ## The splits
#
# Groups are split, never single rows: images of one scene and files with equal bytes stay together, and every label and class is
# divided alike. Train is what classifier and coders fit, validation what thresholds and names are chosen on, test what every reported
# rate is measured on. Images of generators are *unlabelled*: notebook 07 applies the finished detector to them.

# %%
rows = data.manifest.assign(label=data.manifest["label"].map({0: "plausible", 1: "implausible"}).fillna("unlabelled"))
split_table = pd.crosstab(rows["split"], rows["label"]).reindex([s for s in store.SPLITS if s in set(rows["split"])])
split_table["groups"] = rows.groupby("split")["group"].nunique()
split_table["duplicates"] = (rows["duplicate_of"] != "").groupby(rows["split"]).sum()
display(split_table)
plots.table(stage, split_table.reset_index(), "splits")
groups = rows[rows["split"] != "unlabelled"].groupby("group")["split"].nunique()
assert groups.max() == 1, "a group stands in two splits"
print(f"{len(groups)} groups are split; {int(split_table['duplicates'].sum())} files repeat another one and count once")

# %% [markdown]
# ## What the images look like
#
# In the demo every pair is the same scene, drawn plausibly and with its one error. A person sees the difference at a glance; that the
# two are otherwise alike is what makes it hard for an encoder.

# %%
fig, shown = None, pd.DataFrame()
if config.source == "scenes" and pictures:
    fig, shown = sheets.scene_pairs(data, seed=seed)
elif config.source == "images" and pictures:
    fig, shown = sheets.sample_sheet(data, seed=seed)
if fig is not None:
    plots.save(stage, fig, "images", shown)
    plt.show()
print(f"{len(shown)} pairs shown" if config.source == "scenes" else f"{len(shown)} of {len(data.x)} images shown")

# %% [markdown]
# ## Where they lie
#
# The two directions of largest variance. What the encoder cares about most shows here; a difference of a finger rarely does.

# %%
fig, points = sheets.map_figure(data, seed=seed)
plots.save(stage, fig, "map", points)
plt.show()
print(f"{len(points)} of {len(data.x)} rows are drawn, in {points['group'].nunique()} groups")

# %% [markdown]
# ## The encoder's report card
#
# A linear probe is the plainest reader of `x`: what it finds, later notebooks can hope to find; what it misses, they
# cannot be blamed for. It is fitted on train rows and scored on test rows. With the truth at hand, each cause also gets a probe of its
# own, against plausible images of the *same* family, since telling a hand from a glass is no merit. Zero-shot naming asks
# whether the nearest text names what the image shows.

# %%
if config.source == "scenes":
    report = card.scenes_card(data, {cause: about["captioned"] for cause, about in CAUSES.items()})
elif facts["labels"] == "plausibility":
    report = card.folds_card(data, seed)
elif facts["labels"] == "classes":
    names = [f"a photo of a {name.replace('_', ' ')}" for name in facts["class_names"]]
    report = card.classes_card(data, tower.encode_texts(names) if tower.tokenizer else None)
else:
    report = card.words_card(data)
plots.table(stage, report, "encoder")
display(report.style.format(precision=3, na_rep="").hide())

# %%
print(card.reading(report, facts))

# %% [markdown]
# ## Answer, limits, next
#
# The card says how much of the physics a line can read from `x`, and that is the ceiling for what follows. It does not say that the
# encoder *uses* it, nor where it sits: one error may be spread over many dimensions. For photographs whose labels come with
# their source (real against generated), a probe may read the source instead of the physics; only a truth like the demo's tells them apart.
# Next: notebook 02 trains the small classifier whose hidden layer is taken apart in notebook 03.

# %%
stage.finish(provides=sources.provided(data), **facts)
