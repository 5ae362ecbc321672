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
# # Concepts · Do the coders hold on other data, what are their latents called, and what are the names good for?
#
# A sparse autoencoder of CLIP embeddings is trained on images of one data set. CLIP puts other images and texts in the same space,
# so here its codes are measured on both. Then each latent is named after the phrase that its own direction points to, two seeds
# are compared latent by latent, images are searched by their concepts, and a classifier is asked whether attributes that
# should not matter sway it.
#
# *Needs* a run up to 06 whose `x` are final embeddings (coders of an inner layer live in another space). *Makes* the tables and
# figures `concepts_...`. *Takes* about a minute for the demo's scenes.

# %% tags=["parameters"] needs="autoencoders"
run_dir = "runs/msae"  # folder of the run to look at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of samples, shuffled names and random directions
second_data = ""  # other images: a folder, or embeddings (.npy, .npz, LMDB); empty: the images of generators, if any
second_text = ""  # text embeddings in the same space (.npy, .npz, LMDB), e.g. captions; empty: the vocabulary's phrases
text_centring = (
    "shift"  # what takes the gap to the images away: shift (by one vector) | own (mean and scale: MSAE's -dm)
)
concept_method = "msae_rw"  # whose latents search and bias are shown with; where it is missing, the first one
name_threshold = 0.0  # cosine from which a name counts; 0.0: what 1 in 100 random directions exceeds
same_latent = 0.7  # cosine from which a latent of another seed counts as the same
n_neighbours = 5  # images found for each query
published = False  # also write the files that the authors' scripts write, under their names

# %%
import numpy as np
import pandas as pd
import seaborn as sns

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.manifest import image_classes
from mtlib.features import bias, concepts, msae_files, other_data
from mtlib.learn.classifier import Classifier
from mtlib.measure.compare import curves, distributions
from mtlib.measure.similarity import align
from mtlib.run.artifacts import read_meta
from mtlib.run.stage import Stage

plots.use_style()
stage = Stage("concepts", globals())
data, styles = store.open_data(stage), plots.run_styles(stage.input("03_train"))
everyone, subjects = concepts.open_autoencoders(data, stage.input("03_train"))
chosen = next((s for s in subjects if s.method == concept_method), subjects[0])

# %% [markdown]
# ## On other data
#
# The coder keeps the centring, scaling and thresholds of its train images; nothing is fitted again. The second image set shows
# what a change of the images costs, the texts what a change of modality costs. Images and texts of a CLIP lie in two clouds
# apart, so a part of the latter is only that gap: *text, centred* is the same texts moved by one vector onto the images' mean;
# *text, own centring* puts the texts' mean and scale in the place of those that the coder was trained with, as MSAE's authors do.

# %%
given = (second_data, second_text, stage.root, stage.out / "shards" / "second", text_centring)
sets = other_data.other_sets(data, *given)
there = other_data.evaluate_on(sets, data, subjects, seed)
known = pd.DataFrame([(s.name, s.what) for s in sets], columns=["data", "what"])
stage.table(known, "data", "The other data, beside the run's own test images.", {"data": "data", "what": "what it is"})

# %%
metrics = other_data.beside_test(there, stage.read("04_evaluate", "04_metrics"), "summary")
headings = {"data": "data", "method": "method", "explained_variance": "R²", "cosine": "cosine", "l0": "L0"}
headings |= {"cknna": "CKNNA", "mono_score": "MonoScore", "purity": "purity", "probe_kl": "probe KL (nats)"}
stage.table(metrics, "metrics", "The same coders on other data.", headings | {"probe_agreement": "same argmax"})

# %% [markdown]
# ## Progressive recovery, on all data
#
# Only the 16, 32, 64 ... largest codes of each row are kept. A Matryoshka coder should degrade gently, also where it was not trained.

# %%
recovery = other_data.beside_test(there, stage.read("04_evaluate", "04_progressive"), "progressive")
drawn = recovery.assign(target=recovery["data"], fvu=recovery["fvu"].clip(upper=2))
caption = "FVU against the codes kept per row (1 is the mean; above 2: drawn at 2); dotted: the k of training."
stage.figure(curves(drawn, "kept", "codes kept per row", styles), "progressive", recovery, caption)

# %% [markdown] needs="text"
# ## Names
#
# A latent's name is the phrase nearest to its decoder row (or encoder column): the way of *Discover-then-Name*, which MSAE follows.
# Latents are directions about a mean, so the texts are taken about theirs: what all texts share would name everything. Some phrase
# is always nearest, and what cosine is high depends on the CLIP; so a name counts only from the cosine that one in a hundred
# random directions exceeds. Whether names *fit* is then tried on test images: those on which a latent is strongest should lie
# nearer to its name (rank above 0.5) than to another latent's.

# %% needs="text"
of = {(s.method, by): (s.coder, data, by, name_threshold, seed) for s in subjects for by in concepts.BY}
named = [concepts.name_latents(*given).assign(method=method, by=by) for (method, by), given in of.items()]
named = pd.concat(named, ignore_index=True)
headings = {"method": "method", "by": "by", "n_latents": "latents", "threshold": "cosine that counts"}
headings |= {"n_named": "named", "n_names": "names", "nearer": "images near it", "nearer_other": "near another"}
stage.table(concepts.naming_summary(named), "names", "Latents named by their own direction.", headings)

# %% needs="text"
levels = named.groupby(["method", "by", "threshold"], sort=False)["cosine"].quantile(np.linspace(0, 1, 101))
cosines = levels.rename_axis(["method", "by", "threshold", "quantile"]).reset_index()
wide = cosines.pivot(index=["method", "quantile"], columns="by", values="cosine").reset_index()
labels = {by: f"cosine of the {by} to the nearest phrase" for by in concepts.BY}
fig = distributions(wide, dict.fromkeys(labels, cosines["threshold"].iloc[0]), styles, labels)
stage.figure(fig, "naming", cosines, "Cosine of every latent to its nearest phrase; a name from the dashed line on.")

# %% needs="text"
names = named.query("method == @chosen.method and by == 'decoder'").reset_index(drop=True)
valid = names[names["named"]].sort_values(["cosine", "feature"], ascending=[False, True], ignore_index=True)
stage.table(valid.drop(columns=["threshold", "method", "by"]), "latents").head(12)

# %% [markdown] needs="seeds"
# ## Do two seeds learn the same latents?
#
# Latents are matched one to one so that the sum of cosines is largest (Hungarian), by what they write (decoder) and by what they
# read (encoder). Two coders that were trained elsewhere are matched like two seeds. A latent is *the same* in both seeds when the two matchings agree on its partner and both cosines reach
# `same_latent`.

# %% needs="seeds"
aligned = align(everyone, same_latent, seed)
caption = "Latents of two seeds matched one to one: mean cosines, and the share of latents that are the same in both."
mean = aligned.melt("method", ["decoder", "encoder", "both_shared", "chance"], "of", "agreement of two seeds")
grid = plots.facets(sns.catplot, mean, kind="bar", y="method", x=mean.columns[-1], hue="of", errorbar=None, aspect=1.6)
stage.figure(grid.figure, "alignment", aligned, caption)
aligned.round(3)

# %% [markdown]
# ## Search by concepts
#
# Every test image is a query; its neighbours by codes stand beside those by embeddings (cosine in both). What codes add is the
# reason: the concepts that query and neighbour share.

# %%
found = {s.method: concepts.search(s.coder, data, n_neighbours, seed=seed) for s in subjects}
classes, _ = image_classes(data.manifest, data.tokens)
quality = pd.DataFrame([{"method": m} | concepts.search_quality(f, classes) for m, f in found.items()])
headings = {"method": "method", "n_queries": "queries", "overlap": "same neighbours", "same_chance": "by chance"}
headings |= {"same_embedding": "same class: embeddings", "same_centred": "centred embeddings", "same_codes": "codes"}
stage.table(quality, "search", "Neighbours of every test image by codes, beside those by embeddings.", headings)

# %% needs="text"
shown = concepts.shown_queries(found[chosen.method], data, names, seed=seed)
stage.table(shown, "neighbours")
shown[shown["by"] == "codes"].groupby("query").head(2)[["query_is", "what", "shared"]]

# %% needs="text pictures"
groups = list(shown.groupby(["query", "by"], sort=False))
lines = [[data.thumbnail(int(row)) for row in (query, *own["row"])] for (query, _), own in groups]
fig = plots.image_grid(lines, names=[by for (_, by), _ in groups], heads=["query", "nearest"], side=1.1)
stage.figure(fig, "neighbours", shown, "Some test images and their neighbours by embeddings and by codes.")

# %% [markdown] needs="head attributes"
# ## Bias: does an attribute that should not matter sway the classifier?
#
# Attributes are columns of the table of images (gender, age ... of CelebA), or the nuisances of the rendered scenes. First: are
# decisions wrong more often on images with an attribute? Then the latent that tells these images best is removed and turned up:
# if the classifier leans on it, its decisions turn, more than for a random direction of the same length. Of the intervals,
# 5 in 100 leave out 0 by chance.

# %% needs="head attributes"
attributes = bias.attributes(data)
biased = bias.disparities(data, attributes)
caption = "More wrong decisions on images with an attribute than on those without it, 95% intervals."
stage.figure(bias.figure(biased), "bias", biased, caption)
apart = int(((biased["low"] > 0) | (biased["high"] < 0)).sum())
stage.say("bias", f"Of {len(biased)} values of attributes, {apart} have an interval that leaves out 0.")

# %% needs="head attributes"
classifier = Classifier.load(stage.input("02_classify") / "classifier")
turned = bias.concept_effects(data, attributes, chosen.coder, classifier, seed)

# %% needs="head attributes text"
turned["phrase"] = turned["feature"].map(names["phrase"])

# %% needs="head attributes"
long = turned.melt(["attribute", "value", "scale"], ["flipped", "flipped_control"], "of", "decisions that turn (share)")
look = {"x": "scale", "y": long.columns[-1], "hue": "of", "style": "of", "markers": True, "errorbar": ("pi", 100)}
grid = plots.facets(sns.relplot, long, kind="line", aspect=1.5, **look)
caption = "Decisions that turn when an attribute's concept is removed or turned up; band: all values of attributes."
stage.figure(grid.figure, "flips", turned, caption)
turned.groupby("scale")[["flipped", "flipped_control"]].mean().round(3)

# %% [markdown] needs="published"
# ## The files of MSAE's scripts
#
# Codes and reconstructions of every row (plain float32 without a header: sizes stand in the name), scores at every k, and the
# matrix of phrases against latents, by which others who have the authors' scripts go on. Arrays stay in this stage's folder; scores
# go into the report's folder `published/`. Two things differ from this repo's own tables: codes are those before the selection, and
# FVU is taken across the units of each row.

# %% needs="published"
written = msae_files.write_all(stage.out, data, subjects, read_meta(stage.input("01_embed"))["params"])
headings = {"file": "file", "what": "what", "rows": "rows", "columns": "columns"}
stage.table(written, "published", "Files as MSAE's scripts write them, in the folder of this stage.", headings)

# %% [markdown]
# ## Answer
#
# The tables say how much of other images and of texts the codes still hold, how many latents have a name that fits, and how many a
# second seed would find again. Limits: a name is one of the given phrases; a neighbour by codes is explained, not necessarily
# better; a difference in wrong decisions may have other causes than the attribute.

# %%
stage.finish(method=chosen.method, data=list(known["data"]))
