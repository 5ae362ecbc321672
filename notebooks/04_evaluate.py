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
# # 04 · What do the codes keep, and what are their latents like?
#
# Notebook 03 trained several sparse coders. Here each is measured on the test images, which nothing has seen: how much of its
# target does it rebuild, from how many latents, and is a latent about one thing?
#
# *Needs* the embeddings (01), the classifier (02, where there is one) and the coders (03). *Makes* the tables `04_metrics.csv` and
# `04_comparison.csv`, the figures below, and `scan/<method>/`, what notebook 05 shows of every latent. *Takes* about half a minute
# on two cores for the demo. Every number is exact over the split: the batch size cannot change it. Where every error is known,
# the notebook *truth* goes on from here and asks whether single latents find it.

# %% tags=["parameters"] needs="coders"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the samples for CKNNA and of the permutations behind the purity null
l0_tolerance = 0.05  # a measured L0 within this share of what training aimed at is matched
top_n = 20  # strongest images kept of each latent, per split
zero_shot_images = []  # other images on which zero-shot is tried with the coders inside: class folders, "torchvision:CIFAR10"
n_zero_shot = 1000  # at most so many images of each, evenly over the classes

# %%
from functools import cache

from IPython.display import display

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.encoders import Encoder
from mtlib.learn.classifier import Classifier
from mtlib.measure import compare, zero_shot
from mtlib.measure.codes import open_subjects, stacked
from mtlib.measure.monosemanticity import chance, quantiles
from mtlib.measure.reconstruction import definitions
from mtlib.run.stage import Stage

plots.use_style()
stage = Stage("04_evaluate", globals())

# %%
data = store.open_data(stage)
subjects, skipped = open_subjects(stage.input("03_train"))
classifier = Classifier.load(stage.input("02_classify") / "classifier") if stage.has("02_classify") else None
styles = plots.run_styles(stage.input("03_train"))  # a method looks the same in every figure of the run
skipped

# %% [markdown]
# ## One pass
#
# One pass over the test images gives everything at once: the sums behind the reconstruction, how often and how strongly every latent
# fires and on which images most, MonoScore, purity, and how many of a latent's images are implausible. The train images are passed
# over for dead latents and to compare, the validation images for those that later notebooks name a latent from.
#
# For a coder of `x` there is one more question: spliced into the encoder, so that the text tower meets the reconstruction in place
# of the embedding, how many percentage points does zero-shot classification lose? Where `x` are tokens of an inner layer, their
# reconstructions go into the forward pass, and the later layers go on from there.

# %%
tower = cache(lambda: Encoder.of(data.facts))
task, no_task = zero_shot.zero_shot_task(data, tower)
scans = compare.scan_all(data, subjects, classifier, seed, task, top_n)
compare.write_scans(stage.out / "scan", data, subjects, scans, top_n)

# %%
summaries = [found.summary for found in scans]
further = (zero_shot_images, stage.out / "shards", stage.root, n_zero_shot, seed)
spliced, left = zero_shot.inside_encoder(data, subjects, summaries, task, tower, *further)
metrics = compare.metrics_table(subjects, summaries, skipped, l0_tolerance)
done = metrics[metrics["status"] == "ok"]
stage.table(metrics, "metrics", "Every method and seed: all measures on the test images.")

# %% [markdown]
# ## Train, validation and test
#
# The same measures on the images that a coder has learned from, on those that chose its best step, and on test: where they part,
# it has learned its images by heart. `scan/<method>/results.json` has them as MonoLoss's authors report them.

# %%
splits = compare.splits_table(subjects, scans)
stage.table(splits, "splits", "Every method and seed: train, validation and test images.")
splits.pivot_table(index="method", columns="split", values=["fvu", "l0", "mono_score"], sort=False).round(3)

# %% [markdown]
# ## A fair comparison
#
# FVU is the share of the target's variance that is left: 0 is perfect, 1 is what the mean would leave. **An FVU of `x` and one of
# `y` are different quantities**, and FVU depends on how many latents are active, so there is one table per target and L0. A row is
# *matched* when the L0 measured on test is close to what training aimed at; *unmatched* rows are no part of a ranking. Each number is
# the mean over seeds; the interval in the CSV is Student's t over three seeds or more, and just the smaller and the larger of two.
# Shares are of all latents: those that fire on fewer than 10 test images are not assessed and count as no.

# %%
measures = {"l0": "L0", "fvu": "FVU", "cosine": "cosine", "dead_fraction": "dead", "mono_score": "MonoScore"}
measures |= {"purity": "purity", "cknna": "CKNNA", "stability": "stability", "logit_change": "logit change"}
measures |= {"probe_agreement": "probe agreement", "probe_f1_rebuilt": "probe F1", "zero_shot_drop": "zero-shot drop"}
compared = compare.comparison(metrics, measures)

# %%
headings = {"method": "method", "target": "target", "l0_target": "L0 aimed at", "matched": "matched"}
headings |= {"n_seeds": "seeds", "n_latents": "latents", "n_parameters": "parameters", "assessed_rate": "assessed"}
shown = stage.table(compared, "comparison", "Every method, means over its seeds.", headings | measures)
for _, part in shown.groupby(["target", "L0 aimed at"], dropna=False):
    display(part.dropna(axis=1, how="all"))

# %%
columns = ["method", "seed", "target", "l0_target", "matched", "l0", "fvu"]
caption = "What is left of the target (FVU) against measured L0: large marks are means, small ones seeds; down and left is better."
stage.figure(compare.fvu_against_l0(metrics, styles), "fvu_l0", done[columns], caption)

# %%
for b in compare.best(compared).itertuples():
    of = f"Of {b.n} methods that rebuild {b.target} with {b.l0_target:.0f} latents per image"
    display(stage.say(f"least left {b.target} {b.l0_target:.0f}", f"{of}, {b.method} leaves least: FVU {b.fvu:.3f}."))

# %% [markdown] needs="head"
# ## What does the classifier lose?
#
# What *can* be compared across targets: how much the classifier's logit changes when the reconstruction takes the target's place.
# `logit_fvu` is the share of its variance that is lost, `logit_agreement` the share of images with the same decision.

# %% needs="head"
done.groupby("method")[["logit_change", "logit_fvu", "logit_agreement"]].mean().sort_values("logit_fvu").round(3)

# %% [markdown] needs="text"
# ## What does zero-shot classification lose?
#
# Percentage points of accuracy, with the coder's reconstruction in place of what it rebuilds. Transcoders do not rebuild `x`, so there
# is nothing of theirs to splice in. Below: coders inside the encoder's forward pass, and other images that were tried; and why one
# was left out.

# %% needs="text"
done.filter(like="zero_shot").groupby(done["method"], sort=False).mean().dropna(how="all").round(3)

# %% needs="text"
names = {"images": "images", "method": "method", "tokens": "tokens replaced", "n": "number", "zero_shot_top1": "top-1"}
names |= {"zero_shot_top1_spliced": "top-1 with the coder", "zero_shot_drop": "points lost"}
names |= {"zero_shot_drop_relative": "percent lost", "zero_shot_top5": "top-5"}
if len(spliced):
    display(stage.table(spliced, "zero_shot", "Zero-shot accuracy with the coder inside the encoder.", names))
left

# %% [markdown]
# ## Levels: does a prefix of the latents suffice?
#
# A Matryoshka coder has a reconstruction at every level: from its first few latents (or, for nested TopK, its few largest codes) to
# all of them. A coder with one level is one point. If a later level is *worse* than an earlier one, the levels did not learn to
# build on each other.

# %%
levels = stacked(subjects, [found.levels for found in scans])
caption = "What is left at every level of a coder: from its first few latents to all of them."
stage.figure(compare.curves(levels, "l0", "measured L0 of the level", styles, "level"), "levels", levels, caption)
levels.pivot_table(index="method", columns="level", values="fvu", sort=False).round(3)

# %% [markdown]
# ## Progressive recovery
#
# The same weights, but of each image's codes only the 16, 32, 64 ... largest are kept. A coder whose curve is flat puts what matters
# into its strongest codes. A coder that was trained to keep k codes is also asked for more than k, taken before its selection, as
# MSAE's authors do: a curve that rises beyond its dotted line has codes there that it never learned to use.

# %%
progressive = stacked(subjects, [found.progressive for found in scans])
caption = "What is left when only the largest codes of each image are kept; dotted: how many a coder keeps in training."
stage.figure(compare.curves(progressive, "kept", "codes kept per image", styles), "progressive", progressive, caption)

# %% [markdown]
# ## Are latents about one thing?
#
# MonoScore is the mean cosine of pairs of images, weighted by how strongly both activate the latent; a latent that says nothing
# scores the split's mean cosine. Purity is the share of a latent's images in its commonest class (folder, category or family, never
# the label); since few images always have *some* commonest class, it is read beside its value under permuted classes. Both reward
# rare latents, so they too depend on L0.

# %%
table = quantiles(stacked(subjects, [found.latents for found in scans]))
caption = "MonoScore and purity of all latents: the share of latents below each value; chance dashed."
stage.figure(compare.distributions(table, chance(done), styles), "latents", table, caption)

# %%
of_latents = ["mono_score", "mean_cosine", "purity", "purity_null", "dead_fraction", "silent_fraction"]
done.groupby("method", sort=False)[[c for c in of_latents if c in done]].mean().round(3)

# %% [markdown] needs="monoloss"
# MonoLoss is a training term that rewards high MonoScores. Where a method was trained without and with it, all else equal, the pair
# shows what it buys and what it costs: from hollow (without it) to full (with it).

# %% needs="monoloss"
pairs = compare.mono_pairs(compared)
caption = "What MonoLoss buys and costs: from hollow (without it) to full (with it)."
stage.figure(compare.mono_figure(pairs, styles), "monoloss", pairs, caption)
pairs.round(3)

# %% [markdown]
# ## Definition card: what others would have printed
#
# Papers mean different things by FVU, R² and "explained variance". The same reconstructions, by each convention; then shifted by a
# constant, and replaced by the mean. Only the first line of each kind is used in this repo. A convention that gives the mean a good
# score, or does not see the shift, cannot be compared with it.

# %%
card = definitions(data, subjects)
stage.table(card, "definitions", "The same reconstructions by the conventions found in published code.")
card[card["method"] == subjects[0].method].round(3)

# %% [markdown]
# ## Answer
#
# The comparison above says which coder keeps most at which L0, and the two figures of latents whether its latents are about one thing.
# Limits: methods are ranked within one target and L0 only, and intervals over a few seeds are wide. None of this says that a latent
# means anything: notebook 05 shows the latents' images, 06 names them and judges them.

# %%
stage.finish(["zero_shot"] * (task is not None), n_coders=len(done), n_skipped=len(metrics) - len(done), top_n=top_n)
