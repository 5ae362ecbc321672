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
# *Needs* the embeddings of 01, the classifier of 02 and the coders of 03 (the first seed of each method is read).
# *Makes* `features/<method>/`: `features.parquet`, `top_images.parquet`, `similar.parquet`, histograms and collages.
# *Takes* about a minute on two cores for the demo.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the control directions and of the permuted classes
n_collages = 30  # pictures drawn per method
collages_of = (
    "surest"  # of which features: "surest" (of errors, of their absence, some active ones) or the most "active"
)
collage_images = 20  # images on a picture, at most the top_n of 04
collage_columns = 5  # of them side by side
collage_split = "val"  # whose images the pictures show: "val", or "test" for a held-out look

# %%
import pandas as pd
from IPython.display import Image, display

from mtlib import plots
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed import store
from mtlib.features import figures, gallery, statistics
from mtlib.features.methods import interpreted
from mtlib.features.similar import similar_features
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import fire_together
from mtlib.measure.logit import causal_relevance
from mtlib.run.stage import Stage

plots.use_style()
gallery.check_settings(collages_of, collage_images, collage_columns, n_collages, collage_split)
params = dict(seed=seed, n_collages=n_collages, collage_split=collage_split, collages_of=collages_of)
params |= dict(collage_images=collage_images, collage_columns=collage_columns)
stage = Stage("05_features", run_dir, stage_dir, params=params)

# %%
data = store.open_data(stage)
coders = interpreted(stage.input("03_train"))
usable = coders[coders["status"] == "ok"]
classifier = Classifier.load(stage.input("02_classify") / "classifier") if data.y is not None else None
labelled = data.facts["labels"] == "plausibility" and (data.labels(data.rows("test")) >= 0).any()
print(
    f"{len(data.rows('val'))} val and {len(data.rows('test'))} test images, each file once; labels: {data.facts['labels']}."
)
for row in coders[coders["status"] != "ok"].itertuples():
    print(f"{row.method} is left out: {row.reason}.")

# %% [markdown]
# ## One pass for all features
#
# All features of a method are watched in the same pass over the images. A short list of the strongest images per
# feature is carried along and merged with each batch, so nothing of the size *images × features* is ever stored.
# Names and choices will use the val images; every rate below is of test images, which took no part in any choice.

# %%
scans, test = stage.input("04_evaluate") / "scan", data.rows("test")
models = {r.method: SparseCoder.from_pretrained(stage.input("03_train") / r.folder) for r in usable.itertuples()}
causal = {}
for row in usable.itertuples() if classifier is not None else ():
    causal[row.method] = causal_relevance(models[row.method], classifier, data.x, test, row.target, seed=seed)

# %%
tables = {}
for method, coder in models.items():
    latents = pd.read_parquet(scans / method / "latents.parquet")
    truth = statistics.truth_columns(coder, data) if data.truth is not None else None
    tables[method] = statistics.feature_table(latents, data, causal.get(method), truth)
    W_dec, W_enc = (w.detach().numpy() for w in (coder.W_dec, coder.W_enc))
    together = fire_together(coder, data.x, test, data.tokens)
    similar = similar_features(W_dec, W_enc, latents["n_active"].to_numpy(), together)
    statistics.write_features(stage.out / "features" / method, tables[method], similar, scans / method)

# %%
rows = [statistics.summary_row(r.method, tables.get(r.method), r.reason) for r in coders.itertuples()]
overview = pd.DataFrame(rows)
plots.table(stage, overview, "features")
display(overview.set_index("method").T if len(tables) else overview)

# %% [markdown]
# A feature is *assessed* when it fires on at least 10 test images; of rarer ones nothing can be said, and they count as
# "no" wherever a share of all features is given.

# %%
for row in overview[overview["status"] == "ok"].itertuples():
    silent = row.n_latents - row.n_active
    print(
        f"{row.method}: {row.n_assessed:.0f} of {row.n_latents:.0f} features assessed, {silent:.0f} never fire on test."
    )

# %% [markdown]
# ## How often do features fire?
#
# Rare features tend to stand for one thing; a feature that fires on half of all images can hardly mean anything.

# %%
if tables:
    fig, frame = figures.densities(tables)
    plots.save(stage, fig, "densities", frame)

# %%
for method, table in tables.items():
    alive = table.loc[table["density"] > 0, "density"]
    print(
        f"{method}: median density {alive.median():.2%}; {(alive > 0.5).sum()} features fire on more than half of all images."
    )

# %% [markdown]
# ## Are a feature's images implausible?
#
# The *error ratio* is the share of a feature's activating test images that are labelled implausible. With few images it
# is high or low by chance, so each has its 95% interval (Wilson), and stands beside the base rate: what a feature that
# has nothing to do with errors would show. *Enriched* features pass a Fisher exact test after correction for the number
# of features tested (Benjamini-Hochberg, q ≤ 0.05).

# %%
if labelled and tables:
    fig, frame = figures.error_ratios(tables)
    plots.save(stage, fig, "error_ratios", frame)

# %%
if labelled and tables:
    base = overview["base_rate"].dropna().iloc[0]
    print(
        f"Base rate {base:.2f}. A ratio of 0.95 alone says little for a feature with 10 images: look at the intervals."
    )
    for row in overview[overview["status"] == "ok"].itertuples():
        share = f"{row.n_enriched:.0f} enriched, {row.n_threshold:.0f} with error ratio >= 0.95"
        print(f"{row.method}: of {row.n_assessed:.0f} assessed features {share}.")

# %%
if labelled and tables:
    fig, frame = figures.enrichment(tables)
    plots.save(stage, fig, "enrichment", frame)

# %%
if labelled and tables:
    for method, table in tables.items():
        sure = table[table["q_bh"] <= 0.05].nlargest(1, "error_low")
        for best in sure.itertuples():
            interval = f"{best.error_ratio:.2f} [{best.error_low:.2f}, {best.error_high:.2f}]"
            print(
                f"{method}: the surest error feature is {best.feature}, ratio {interval} on {best.n_active_test} images."
            )
if not labelled:
    print(
        f"Labels are {data.facts['labels']!r}: nothing says which images are implausible, so there are no error ratios."
    )

# %% [markdown]
# ## Do a feature's images belong together?
#
# Purity is the share of a feature's images in its most frequent class (here: the folder, the family on the demo). The
# grey bars are the same features with the classes shuffled: with few images, one class leads by chance.

# %%
sorted_into = any(table["purity"].notna().any() for table in tables.values())
if sorted_into:
    fig, frame = figures.purities(tables)
    plots.save(stage, fig, "purities", frame)

# %%
if sorted_into:
    for method, table in tables.items():
        mean = table[["purity", "purity_null", "mono_score"]].mean()
        print(
            f"{method}: mean purity {mean.purity:.2f} (shuffled {mean.purity_null:.2f}), mean MonoScore {mean.mono_score:.2f}."
        )
else:
    print("The images are not sorted into classes, so purity says nothing here.")

# %% [markdown]
# ## What does the classifier lose without it?
#
# A ratio is a coincidence until the feature does something. Here each feature is removed from the images on which it
# fires, and the change of the classifier's logit is averaged: below 0, the feature had pushed towards "implausible".
# For a transcoder this is exact arithmetic; for an autoencoder the changed embedding goes through the classifier. The
# control removes another feature's direction of the same length: what any removal of that size does.

# %%
if classifier is not None and labelled and tables:
    fig, frame = figures.causal(tables)
    plots.save(stage, fig, "causal", frame)

# %%
if classifier is not None and tables:
    for row in overview[overview["status"] == "ok"].itertuples():
        sizes = f"median |change| {row.median_causal:.3f}, controls {row.median_causal_control:.3f}"
        print(f"{row.method}: {sizes}; {row.beyond_control:.0%} of assessed features go beyond their control.")
else:
    print("There is no classifier, so there is no logit to change.")

# %%
if classifier is not None and labelled and tables:
    for method, table in tables.items():
        both = table.loc[table["assessed"], ["error_ratio", "causal_relevance"]].dropna()
        rank = both.corr("spearman").iloc[0, 1] if len(both) > 2 else float("nan")
        print(f"{method}: rank correlation of error ratio and change of the logit {rank:.2f} (expected below 0).")

# %% [markdown]
# ## Pictures
#
# Half of the pictures go to the features that are most surely tied to errors, a quarter to the most surely plausible ones, a
# quarter to the most active ones (without labels: the purest, and the most active), or all to the most active
# (`collages_of`). Each shows its strongest images of
# the validation split, strongest first: an orange strip and ✗ mean implausible, blue and ✓ plausible. With
# `pictures: false` in 01 none is drawn.

# %%
load = gallery.loader(data)
drawn = {}
for method, table in tables.items():
    top = pd.read_parquet(stage.out / "features" / method / "top_images.parquet")
    top = top[top["split"] == collage_split]
    n_images = top.groupby("feature").size().reindex(table["feature"], fill_value=0).to_numpy()
    n_drawn = n_collages if data.pictures else 0
    chosen = gallery.choose(table.assign(n_images=n_images), n_drawn, what=collages_of)
    folder, lines = stage.out / "features" / method / "collages", gallery.describer(table, method)
    grid = dict(n_images=collage_images, columns=collage_columns)
    written = gallery.write_collages(folder, chosen["feature"], top, lines, load, labelled, **grid)
    drawn[method] = chosen.merge(written, on="feature").assign(method=method)

# %%
if drawn:
    pictures = pd.concat(drawn.values(), ignore_index=True)[["method", "feature", "reason", "images", "bytes"]]
    plots.table(stage, pictures, "collages")
    print(f"{len(pictures)} collages, {pictures['bytes'].sum() / 1e6:.1f} MB in all.")

# %%
for method, part in list(drawn.items())[:2]:
    for row in part.drop_duplicates("reason").itertuples():
        print(f"{method}, feature {row.feature}, chosen for: {row.reason}")
        display(Image(filename=stage.out / "features" / method / "collages" / f"{row.feature}.jpg"))

# %% [markdown]
# ## Answer
#
# Each feature now has its images, its rates with intervals, its neighbours and, for the chosen ones, its picture.
# Limits: an error ratio says that a feature *goes along with* implausible images, not that it sees what is wrong; the
# images of a feature may share a background as well as an error. Next, notebook 06 gives each feature a name and asks
# whether it is a physical error.

# %%
assert all(len(t) == t["feature"].nunique() for t in tables.values())
stage.finish(methods=list(tables), labels=data.facts["labels"], collage_split=collage_split)
