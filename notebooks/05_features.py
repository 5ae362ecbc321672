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
# # 05 · What does each feature fire on?
#
# A sparse coder gives every image a few active features, but a feature is only a number until we see its images. This
# notebook looks at all features of all methods at once: on which images each fires most, how often those images are
# implausible, whether they belong together, and what the classifier loses when the feature is taken away.
#
# *Needs* the coders of 03 (the first seed of each method is read) and what 04 counted of them, `scan/<method>/`.
# *Makes* `features/<method>/`: `features.parquet`, `top_images.parquet`, `similar.parquet`, codes of the test images,
# histograms and collages.
# *Takes* about a minute on two cores for the demo.

# %% tags=["parameters"] needs="coders" settings="mtlib.features.choice:CollageSettings"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the control directions
n_collages = 30  # collages drawn per method
collages_of = "surest"  # of which features: "surest" (of errors, of their absence, some active), or the most "active"
collage_images = 20  # images on a collage, at most 04's top_n
collage_columns = 5  # of them side by side
collage_split = "val"  # whose images the collages show: "val", or "test" for a held-out look
published = False  # also write files as the published systems do, into reports/<run>/published/

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.manifest import SPLITS
from mtlib.features import collages, published_files, table, where
from mtlib.features.choice import CollageSettings
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import fire_together, first_seeds, interpreted, open_subjects, sparse_codes
from mtlib.measure.logit import causal_relevance
from mtlib.measure.scan import activity
from mtlib.measure.similarity import copies
from mtlib.run.stage import Stage

# %%
plots.use_style()
stage = Stage("05_features", globals())
settings = stage.settings(CollageSettings)
data, scans = store.open_data(stage), stage.input("04_evaluate") / "scan"
test = data.rows("test")
subjects = first_seeds(open_subjects(stage.input("03_train"))[0])
causal, truth = {}, {}
look = {"col": "method", "col_order": [s.method for s in subjects], "height": 2.8, "aspect": 1.2}  # a panel per method
said = {True: "yes", False: "no"}

# %% [markdown]
# ## Everything about every feature
#
# Notebook 04 counted all latents in its pass over the images. Here the first seed of each method is read: a latent that is
# looked at is called a feature. Names and choices use the val images; every rate below is of test images, which took no part
# in any choice.

# %% needs="head"
classifier = Classifier.load(stage.input("02_classify") / "classifier")
causal = {s.method: causal_relevance(s.coder, classifier, data.x, test, s.target, seed=seed) for s in subjects}

# %% needs="truth"
truth = {s.method: table.truth_columns(s.coder, data) for s in subjects}

# %%
tables = {}
for s in subjects:
    latents = pd.read_parquet(scans / s.method / "latents.parquet")
    codes = sparse_codes(s.coder, data.x, test, tokens=data.tokens)
    tables[s.method] = table.feature_table(latents, data, copies(codes), causal.get(s.method), truth.get(s.method))
    together = fire_together(s.coder, data.x, test, data.tokens)
    weights = (w.detach().numpy() for w in (s.coder.W_dec, s.coder.W_enc))
    similar = table.similar_features(*weights, latents["n_active"].to_numpy(), together)
    table.write_features(stage.out / "features" / s.method, tables[s.method], similar, codes, scans / s.method)

# %%
overview = table.overview(tables, interpreted(stage.input("03_train")))
headings = {"method": "method", "n_latents": "latents", "n_active": "fire on test", "n_assessed": "assessed"}
headings |= {"n_copies": "copies", "median_density": "median density", "n_enriched": "enriched"}
headings |= {"n_threshold": "error ratio ≥ 0.95"}
headings |= {"median_mono_score": "median MonoScore", "median_purity": "median purity"}
headings |= {"beyond_control": "change of the logit beyond its control", "reason": "left out because"}
stage.table(overview, "features", "Features of each method; medians are of the assessed ones.", headings)

# %% [markdown]
# A feature is *assessed* when it fires on at least 10 test images; of rarer ones nothing can be said, and they count as
# "no" wherever a share of all features is given.

# %% [markdown]
# ## How often do features fire?
#
# Rare features tend to stand for one thing; a feature that fires on half of all images can hardly mean anything.

# %%
frame = table.density_counts(tables)
grid = plots.facets(sns.displot, frame, x="from", weights="features", bins=24, log_scale=True, **look)
grid.set_axis_labels("density: share of test images", "features")
stage.figure(grid.figure, "densities", frame, "How often features fire: their number by share of test images.")

# %% [markdown] needs="labels"
# ## Are a feature's images implausible?
#
# The *error ratio* is the share of a feature's activating test images that are labelled implausible. With few images it
# is high or low by chance, so each has its 95% interval (Wilson), and stands beside the base rate: what a feature that
# has nothing to do with errors would show. *Enriched* features pass a Fisher exact test after correction for the number
# of features tested (Benjamini-Hochberg, q ≤ 0.05). A ratio of 0.95 alone says little for a feature with 10 images: look at
# the intervals.

# %% needs="labels"
names = ["error_ratio", "error_low", "error_high", "n_active_test", "q_bh", "base_rate"]
frame = table.assessed(tables, names).sort_values(["method", "error_ratio", "feature"], ignore_index=True)
frame["place"] = frame.groupby("method").cumcount() / frame.groupby("method")["feature"].transform("size")
enriched, marks = (frame["q_bh"] <= 0.05).map(said).rename("enriched"), {"no": "0.5", "yes": "C3"}
grid = plots.facets(sns.relplot, frame, x="place", y="error_ratio", hue=enriched, palette=marks, **look)
grid.map(plt.fill_between, "place", "error_low", "error_high", alpha=0.25).map(plt.plot, "place", "base_rate")
grid.refline(y=0.95).set_axis_labels("place among the assessed features", "error ratio on test")
caption = "Error ratios of all assessed features with their 95% intervals; line: base rate, dashed: 0.95."
stage.figure(grid.figure, "error_ratios", frame, caption)

# %% needs="labels"
frame = table.assessed(tables, ["error_ratio", "base_rate", "p_fisher", "q_bh", "n_active_test"])
frame["difference"] = frame["error_ratio"] - frame["base_rate"]
frame["minus_log10_p"] = -np.log10(frame["p_fisher"].clip(lower=1e-300))
enriched, images = (frame["q_bh"] <= 0.05).map(said).rename("enriched"), frame["n_active_test"].rename("test images")
look_too = look | {"palette": marks, "size": images}
grid = plots.facets(sns.relplot, frame, x="difference", y="minus_log10_p", hue=enriched, **look_too)
grid.refline(x=0).set_axis_labels("error ratio - base rate", "-log10 p, Fisher exact")
grid.set(yscale="symlog", ylim=(-0.2, None))
caption = "How far features' error ratios lie from the base rate, and how sure that is."
stage.figure(grid.figure, "enrichment", frame, caption)

# %% [markdown] needs="labels"
# The surest error feature of each method, by the lower end of its interval:

# %% needs="labels"
sure = pd.concat([t[t["q_bh"] <= 0.05].nlargest(1, "error_low").assign(method=m) for m, t in tables.items()])
sure[["method", "feature", "error_ratio", "error_low", "error_high", "base_rate", "n_active_test"]].round(3)

# %% [markdown] needs="classes"
# ## Do a feature's images belong together?
#
# Purity is the share of a feature's images in its most frequent class (here: the folder, the family on the demo). The
# grey bars are the same features with the classes shuffled: with few images, one class leads by chance.

# %% needs="classes"
frame = table.assessed(tables, ["purity", "purity_null", "dominant_class", "n_active_test"])
both = frame.rename(columns={"purity": "as they are", "purity_null": "shuffled"})
both = both.melt("method", ["as they are", "shuffled"], var_name="classes", value_name="share").dropna()
bars = look | {"palette": {"as they are": "C0", "shuffled": "0.6"}, "binwidth": 0.04, "binrange": (0, 1)}
grid = plots.facets(sns.displot, both, x="share", hue="classes", **bars)
grid.set_axis_labels("share of images in its most frequent class", "features")
caption = "Share of a feature's test images in its most frequent class; beside: classes shuffled."
stage.figure(grid.figure, "purities", frame, caption)

# %% [markdown] needs="head labels"
# ## What does the classifier lose without it?
#
# A ratio is a coincidence until the feature does something. Here each feature is removed from the images on which it
# fires, and the change of the classifier's logit is averaged: below 0, the feature had pushed towards "implausible".
# For a transcoder this is exact arithmetic; for an autoencoder the changed embedding goes through the classifier. The
# control removes another feature's direction of the same length: what any removal of that size does.

# %% needs="head labels"
controls = ["causal_control_latents", "causal_control_random"]
frame = table.assessed(tables, ["error_ratio", "base_rate", "causal_relevance", *controls])
beyond = (frame["causal_relevance"].abs() > frame[controls[0]]).map(said).rename("beyond its control")
over = look | {"palette": {"no": "0.5", "yes": "C2"}, "facet_kws": {"sharey": False}}
grid = plots.facets(sns.relplot, frame, x="error_ratio", y="causal_relevance", hue=beyond, **over)
grid.map(plt.axvline, x=frame["base_rate"].max(), color="0.2", ls="--").refline(y=0)
grid.set_axis_labels("error ratio on test", "change of logit when removed")
caption = "Change of the classifier's logit when a feature is removed, against its error ratio."
stage.figure(grid.figure, "causal", frame, caption)

# %% [markdown] needs="head labels"
# If what goes along with errors also makes the classifier say so, the rank correlation of the two is below 0:

# %% needs="head labels"
parts = frame.groupby("method", sort=False)
rank = {m: part["error_ratio"].corr(part["causal_relevance"], "spearman") for m, part in parts}
pd.Series(rank, name="rank correlation", dtype=float).round(2).to_frame()

# %% [markdown]
# ## Collages
#
# Half of the collages go to the features that are most surely tied to errors, a quarter to the most surely plausible ones, a
# quarter to the most active ones (without labels: the purest, and the most active), or all to the most active (`collages_of`).
# Each shows its strongest images of `collage_split`, strongest first: an orange strip and ✗ mean implausible, blue and ✓
# plausible. With `pictures: false` in 01 none is drawn. Where rows of `x` are tokens on a grid, `where/` has each collage again,
# with a map of where in the image the feature fires.

# %%
tops = {m: pd.read_parquet(scans / m / "top_images.parquet") for m in tables}
drawn = collages.write_collages(stage.out / "features", tables, tops, data, settings)
where.write_tokens(stage.out / "features", {s.method: s.coder for s in subjects}, tops, data, drawn, settings)
stage.table(drawn, "collages").groupby(["method", "reason"], sort=False).size().to_frame("collages")

# %%
for row in drawn.drop_duplicates(["method", "reason"]).head(6).itertuples():
    display(Image(stage.out / "features" / row.method / "collages" / f"{row.feature}.jpg"))

# %% [markdown] needs="published"
# **The same in published files.** Matryoshka Transcoders keeps a folder per feature with its 20 strongest images, SAE-for-CLIP a
# collage of each of the most active features. Both look at all images, so nothing in them is held out: they are for looking,
# and for scripts that read such folders.

# %% needs="published"
rows, out = data.rows(SPLITS), stage.out / published_files.FOLDER
found = {s.method: activity(s.coder, data.x, rows, tokens=data.tokens) for s in subjects}
sheets = published_files.write_interpretations(out, stage.out / "features", found, data, settings)
published_files.write_folders(out, found, data).merge(sheets, on="method")

# %% [markdown]
# ## Answer
#
# Each feature now has its images, its rates with intervals, its neighbours and, for the chosen ones, its collage.
# Limits: an error ratio says that a feature *goes along with* implausible images, not that it sees what is wrong; the
# images of a feature may share a background as well as an error. Next, notebook 06 gives each feature a name and asks
# whether it is a physical error.

# %%
assert all(len(t) == t["feature"].nunique() for t in tables.values())
stage.finish(methods=list(tables), labels=data.facts["labels"], collage_split=collage_split)
