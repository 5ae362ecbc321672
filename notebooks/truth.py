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
# # Truth · Do single features find the known errors?
#
# On the demo every image's error is known. So the question of the whole repo can be put directly: when an image has one known
# physical error, is there a *single* feature that says so, and nothing else?
#
# *Needs* drawn scenes (01) and the coders (03), for its part on steering the classifier (02). *Makes* the tables `04_causes.csv`,
# `04_where.csv`, `04_sparse_probing.csv`, `04_steering.csv`, `04_kinds.csv`, `04_nuisances.csv`, `04_splitting.csv` and the figures
# below. *Takes* about half a minute on two cores for the demo.

# %% tags=["parameters"] needs="truth coders" after="04_evaluate"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the random directions that features are compared with
n_mapped = 16  # images of each cause on which it is asked where the feature fires ...
n_occluded = 6  # ... and by hiding squares of them, on at most so many
probe_features = [1, 4, 16]  # how many features a sparse probe may use
steer_factors = [0, 0.5, 1, 2, 4]  # on a feature's activation: 0 removes it, 1 changes nothing
error_top = 20  # an error feature: of so many of its strongest val images ...
error_share = 0.8  # ... at least this share shows one cause
error_level = 0.05  # ... which is enriched among its test images at this q (Benjamini-Hochberg)

# %%
from mtlib import plots
from mtlib.embed import store
from mtlib.features.where import where_table
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import open_subjects
from mtlib.run.stage import Stage
from mtlib.truth import figures, tables
from mtlib.truth.causes import standings

plots.use_style()
stage = Stage("truth", globals(), prefix="04")

# %%
data = store.open_data(stage)
subjects, _ = open_subjects(stage.input("03_train"))
known = tables.Known.of(data)
codes = [known.codes(s) for s in subjects]
styles = plots.run_styles(stage.input("03_train"))  # a method looks the same in every figure of the run

# %% [markdown]
# ## Causes found
#
# A *cause* is one known error of one family. A feature stands for it when it fires on the images with the cause and on **nothing
# else**: its activation is read as a detector of the cause among all test images, and scored by average precision, 1 when every image
# with the cause comes before every other one. The feature is chosen on the validation images. Chosen and scored alike, without any
# coder: the best of as many random directions of `x` as the coder has latents, the best single dimension of `x` and unit of `y`, and the
# classifier's logit, which cannot tell one error from another. A cause is *found* at 90% of what a linear probe of all of `x` or `y` reaches.

# %%
captioned = tables.captioned_causes(stage.input("01_embed") / "tables" / "01_encoder.csv")
causes = tables.causes_table(known, subjects, codes, captioned, seed)
caption = "Average precision of the one feature that stands for each cause, mean over seeds; below the line what does without features."
stage.figure(figures.causes_figure(causes), "causes", causes[tables.CAUSES], caption)

# %% [markdown]
# Over all causes: how many each method finds, the mean and the worst average precision, and the smallest and largest mean of one seed.
# Where the seeds of two methods overlap, which is better cannot be told.

# %%
methods = tables.by_method(causes)
methods.round(3)

# %% [markdown]
# Which method has one feature each for most errors? With 95% intervals over the causes, and how far the first method of each L0 is ahead
# of the others there, the same cause and seed compared. *Copies*: features whose codes correlate above 0.9 with that of the cause, itself
# counted.

# %%
found = standings(causes)
caption = (
    "One feature for one error, by method and L0, and how far the first method is ahead; 95% intervals over the causes."
)
stage.figure(figures.levels_figure(found, causes, styles), "cause_methods", found, caption)
found.round(3)

# %%
best, chance = methods.iloc[0], methods.query("control and who.str.contains('random')").iloc[0]
n, said = int(best["causes"]), f"{best.who} has one feature of its own for {best.found} of {best.causes} known causes"
said += f" (mean average precision {best['mean']:.2f}, base rate {causes['base_rate'].mean():.1%})"
stage.say("causes", f"{said}; random directions for {chance.found} ({chance['mean']:.2f}).")

# %% [markdown]
# AUROC against plausible images of the *same family* asks far less: anything that fires on what is implausible answers it.

# %%
causes.groupby("method", sort=False)[["auroc", "auroc_all", "ceiling", "best_x_dim", "best_y_dim"]].mean().round(3)

# %% [markdown]
# ## Does it fire where the error is?
#
# A feature may find an error by what goes along with it. The renderer knows where each error is: the box around all that differs from the
# same scene without it. Of the strongest cells of a feature's heat map, as many as the box covers, which share lies in the box?
# Chance is the share of the cells that the box covers. *Occlusion*: how far the feature falls when a square of the image is hidden.
# The bundled encoder is convolutional; its last map has 2 x 2 places, which projects exactly on a feature but is too coarse. So
# of an earlier layer: activation times gradient where that is positive (LayerCAM), to first order what each place adds.

# %%
subject, chosen = tables.firing(known, subjects, codes, causes, best["who"], n_mapped)
where = where_table(data, subject.coder, chosen, n_occluded, seed)
caption = "Share of a heat map's strongest cells that lie in the box of the error, 95% intervals over images; upright: chance."
stage.figure(figures.where_figure(where), "where", where, caption)
where.round(2)

# %%
every = where[where["cause"] == "all"]
parts = [f"{m} {share:.2f} (chance {chance:.2f})" for m, share, chance in every[["map", "share", "chance"]].to_numpy()]
if parts:
    stage.say("where", f"Share of the strongest cells of a heat map that lie on the known error: {'; '.join(parts)}.")

# %% [markdown]
# ## How many features does it take?
#
# A probe on the best 1, 4 and 16 features. If 16 reach the ceiling and 1 does not, the cause is in the codes but *split* over
# features.

# %%
sparse = tables.sparse_table(known, subjects, codes, probe_features)
caption = "Test AUROC of probes on the best few features; dotted: the worst cause."
stage.figure(figures.sparse_figure(sparse, styles), "sparse_probing", sparse, caption)
sparse.pivot_table(index="method", columns="k", values="auroc", sort=False).round(3)

# %% [markdown] needs="head"
# ## Turning a feature up and down
#
# A feature that finds a cause may still be idle. Here the feature that stands for each cause is scaled, on the test images on
# which it fires, and everything else of the image stays as it is: 0 removes it, 1 changes nothing. If it carries the error, the
# classifier's logit for *implausible* follows it; a random direction of the same length shows what any push of that size does.

# %% needs="head"
classifier = Classifier.load(stage.input("02_classify") / "classifier")
steered = tables.steering_table(data, subjects, classifier, causes, steer_factors, seed)
caption = "The classifier's logit when the feature of a cause is removed (0) or turned up; dashed: a random direction of the same norm."
stage.figure(figures.steering_figure(steered, styles), "steering", steered, caption)
steered.pivot_table(index="method", columns="scale", values=["change", "control"], sort=False).round(2)

# %% [markdown]
# ## What the features stand for
#
# For every feature: which attribute of the image removes most of the uncertainty about its firing, the cause, the family, or a
# nuisance such as background, palette or style? A feature that codes a nuisance may still have a high error ratio by luck; it is no
# error feature. *Truly* an error feature: at least 80% of its 20 strongest validation images share one cause, and that cause is
# enriched among its test images.

# %%
kinds = tables.attributes_table(known, subjects, codes, top=error_top, share=error_share, level=error_level)
shares = tables.attribute_shares(kinds)
stage.figure(figures.attributes_figure(shares), "kinds", shares, "What the latents of each method stand for.")
kinds.groupby(["method", "seed"], sort=False)["is_error"].sum().unstack()

# %%
nuisances = tables.nuisance_counts(kinds)
stage.table(nuisances, "nuisances", "Latents that stand for a nuisance.")
nuisances.nlargest(8, "n_features").round(2)

# %% [markdown]
# ## Splitting and absorption
#
# How many error features share a cause; on how many of the cause's images the best one fires, and any of them; and how often the best
# one is silent when another fires (absorption).

# %%
split = tables.splitting_table(known, subjects, codes, causes, kinds)
stage.table(split, "splitting", "How causes are split over error features.")
split.groupby("method", sort=False)[["n_features", "recall_parent", "recall_any", "absorption"]].mean().round(2)

# %% [markdown]
# ## Answer
#
# The heat map says which causes have a feature of their own, and the rows below it what would have done without. Limits: the feature is
# the one that a person with labels would pick on validation images, not one found without them. Notebook 05 shows the features'
# images, 06 names them and judges them without the truth.

# %%
stage.finish(provides=["causes"], n_causes=n, n_coders=len(subjects))
