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
# # 04 · What do the codes keep, and do single features find the known errors?
#
# Notebook 03 trained several sparse coders. Here each is measured on the test images, which nothing has seen. First:
# how much of its target does it rebuild, from how many latents? Then the question that matters: when an image has one
# known physical error, is there a *single* feature that says so?
#
# *Needs* the embeddings (01), the classifier (02) and the coders (03). *Makes* the tables `04_metrics.csv` and
# `04_causes.csv` and the figures below. *Takes* about half a minute on two cores for the demo. Every number is exact
# over the split: the batch size cannot change it.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of the samples for CKNNA and of the permutations behind the purity null
zero_shot_images = []  # other images on which zero-shot is tried with the coders inside: class folders, "torchvision:CIFAR10"
n_zero_shot = 1000  # at most so many images of each, evenly over the classes
top_n = 20  # strongest images kept of each feature, per split

# %%
from functools import cache

import numpy as np
from IPython.display import display

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.encoders import Encoder
from mtlib.learn.classifier import Classifier
from mtlib.measure import compare, scan, zero_shot
from mtlib.measure.codes import first_seeds, open_subjects
from mtlib.measure.monosemanticity import image_classes
from mtlib.measure.reconstruction import definitions
from mtlib.report import causes as known
from mtlib.report import measures as words
from mtlib.run.stage import Stage
from mtlib.truth import tables as truth

plots.use_style()
if top_n < 1:
    raise ValueError(f"top_n = {top_n} must be at least 1")
tried = dict(top_n=top_n, zero_shot_images=zero_shot_images, n_zero_shot=n_zero_shot)
stage = Stage("04_evaluate", run_dir, stage_dir, params=dict(seed=seed, **tried))

# %% [markdown]
# ## What there is to measure

# %%
data = store.open_data(stage)
subjects, skipped = open_subjects(stage.input("03_train"))
classifier = Classifier.load(stage.input("02_classify") / "classifier") if data.y is not None else None
classes, class_names = image_classes(data)
print(f"{len(subjects)} coders, measured on {len(data.rows('test'))} test images.")
print(f"Classes for purity: {len(class_names)}.")
for row in skipped.itertuples():
    print(f"{row.method} was not trained: {row.reason}.")

# %% [markdown]
# ## Reconstruction and codes
#
# One pass over the test images gives everything; a second over the train images counts dead latents. FVU is the share
# of the target's variance that is left: 0 is perfect, 1 is what the mean would leave. What *can* be compared across
# targets is how much the classifier's logit changes when the reconstruction takes the target's place. For a coder of
# `x` there is one more question: spliced into the encoder, so that the text tower meets the reconstruction in place of
# the embedding, how many percentage points does zero-shot classification lose? Where `x` are tokens of an inner layer, their
# reconstructions go into the forward pass and the later layers go on from there: of all tokens that `x` holds, or of the class
# token only, where there is one.

# %%
tower = cache(lambda: Encoder.of(data.facts))
task, no_task = zero_shot.zero_shot_task(data, tower)
scans = compare.scan_all(data, subjects, classifier, seed, task, top_n)
summaries = [s.summary for s in scans]
further = (zero_shot_images, stage.out / "shards", stage.root, n_zero_shot, seed)
spliced, left = zero_shot.inside_encoder(data, subjects, summaries, task, tower, *further)
metrics = compare.metrics_table(subjects, summaries, skipped)
plots.table(stage, metrics, "metrics")
done = metrics[metrics["status"] == "ok"]
print(f"Zero-shot: {task.what}, one of {len(task.names)}." if task else f"No zero-shot: {no_task}.")

# %% [markdown]
# ## A fair comparison
#
# **An FVU of `x` and one of `y` are different quantities**, and FVU depends on how many latents are active, so there is one
# pair of tables per target and L0: reconstruction, then what the latents are like. A row is *matched* when the L0 measured
# on test is within 5% of what training aimed at; *unmatched* rows are no part of the ranking. Each number is the mean over
# seeds; the interval is Student's t over three seeds or more, and just the smaller and the larger of two. Shares are of all
# latents: those that fire on fewer than 10 test images are not assessed and count as no.

# %%
compared = compare.comparison(metrics)
plots.table(stage, compared, "comparison")
reconstruction = ["matched", "n_seeds", "n_latents", "n_parameters", "l0", "fvu", "cosine", "dead_fraction"]
of_latents = ["assessed_rate", *(c for c in compare.MEASURES if c not in reconstruction)]
for (target, l0), table in words.by_aim(compared).items():
    print(f"target {target}, L0 {l0:.0f}" if l0 == l0 else f"target {target}, no L0 aimed at")
    shown = table.set_index("method").dropna(axis=1, how="all").round(3)
    display(*[shown[[c for c in part if c in shown]] for part in (reconstruction, of_latents)])

# %%
for (target, l0), table in words.by_aim(compared).items():
    said = words.reading(table, words.presets(metrics))
    left_out = int((table["matched"] == "unmatched").sum())
    where = f"L0 {l0:.0f}" if l0 == l0 else "no L0 aimed at"
    print(f"{target}, {where}: {said or 'no ranking: it takes two methods trained to one L0.'} Unmatched: {left_out}.")

# %%
for s in first_seeds(subjects):
    val = scan.activity(s.coder, data.x, data.rows("val"), tokens=data.tokens, top_n=top_n)
    folder = stage.out / "scan" / s.method
    scan.write_scan(folder, scans[subjects.index(s)], val, data.manifest, class_names)

# %%
styles = plots.run_styles(stage.input("03_train"))  # a method looks the same in every figure of the run
if len(done):
    columns = ["method", "seed", "target", "l0_target", "matched", "l0", "fvu"]
    fig = compare.fvu_against_l0(metrics, styles) if done["method"].nunique() > 1 else None  # one point is no figure
    plots.save(stage, fig, "fvu_l0", done[columns])

# %%
if "logit_fvu" in done:
    logit = done.groupby("method")[["logit_fvu", "logit_agreement"]].mean()
    for method, row in logit.sort_values("logit_fvu").iterrows():
        lost = f"{row.logit_fvu:.1%} of the logit's variance is lost"
        print(f"{method}: {lost}; same decision {row.logit_agreement:.1%}.")
else:
    print("There is no classifier, so there is no logit to compare.")

# %%
if task:
    for method, part in done.dropna(subset=["zero_shot_drop"]).groupby("method", sort=False):
        drop, before = part["zero_shot_drop"].mean(), part["zero_shot_top1"].mean()
        print(f"{method}: spliced in, zero-shot loses {round(drop, 1) + 0.0:.1f} of {100 * before:.1f} points.")
    print("Transcoders do not rebuild x, so there is nothing of theirs to splice in.")

# %%
if len(spliced):
    plots.table(stage, spliced, "zero_shot")
    display(spliced.drop(columns=["seed", "target"]).round(3))
print(
    "\n".join(f"Left out: {line}." for line in left)
    or "Other images tried: " + (", ".join(zero_shot_images) or "none.")
)

# %% [markdown]
# ## Levels: does a prefix of the latents suffice?
#
# A Matryoshka coder has a reconstruction at every level: from its first few latents (or, for nested TopK, its few
# largest codes) to all of them. A coder with one level is one point. If a later level is *worse* than an earlier one,
# the levels did not learn to build on each other.

# %%
levels = compare.stacked(subjects, [s.levels for s in scans])
if len(levels):
    several = levels.groupby("method")["level"].nunique().max() > 1
    fig = compare.curves(levels, "l0", "measured L0 of the level", styles) if several else None
    plots.save(stage, fig, "levels", levels)

# %%
for method, part in levels.groupby("method", sort=False):
    fvu = part.groupby("level")["fvu"].mean()
    if len(fvu) > 1:
        falls = "falls at every level" if fvu.is_monotonic_decreasing else f"is lowest at level {fvu.idxmin() + 1}"
        print(f"{method}: FVU {falls}, from {fvu.iloc[0]:.3f} to {fvu.iloc[-1]:.3f}.")

# %% [markdown]
# ## Progressive recovery
#
# The same weights, but of each image's codes only the 16, 32, 64 ... largest are kept. A coder whose curve is flat puts
# what matters into its strongest codes.

# %%
progressive = compare.stacked(subjects, [s.progressive for s in scans])
if len(progressive):
    plots.save(stage, compare.curves(progressive, "kept", "codes kept per image", styles), "progressive", progressive)

# %%
for method, part in progressive.groupby("method", sort=False):
    fvu = part.groupby("kept")["fvu"].mean()
    print(f"{method}: FVU {fvu.iloc[0]:.3f} from the {fvu.index[0]} largest codes, {fvu.iloc[-1]:.3f} from all.")

# %% [markdown]
# ## Are latents about one thing?
#
# MonoScore is the mean cosine of pairs of images, weighted by how strongly both activate the latent; a latent that says
# nothing scores the split's mean cosine. Purity is the share of a latent's images in its commonest class; since few
# images always have *some* commonest class, it is read beside its value under permuted classes. Both reward rare
# latents, so they too depend on L0.

# %%
latents = compare.stacked(subjects, [s.latents for s in scans])
labels = {"mono_score": "MonoScore", "purity": "purity (class)"}
labels = {column: label for column, label in labels.items() if column in latents}
if len(latents):
    table = compare.quantiles(latents, list(labels))
    chance = {"mono_score": done["mean_cosine"].mean()}
    chance |= {"purity": done["purity_null"].mean()} if classes is not None else {}
    plots.save(stage, compare.distributions(table, labels, chance, styles), "latents", table)

# %%
for method, part in done.groupby("method", sort=False):
    pure = f"; purity {part.purity.mean():.2f}, {part.purity_null.mean():.2f} by chance" if "purity" in part else ""
    print(f"{method}: MonoScore {part.mono_score.mean():.2f}, {part.mean_cosine.mean():.2f} by chance{pure}.")
    print(f"  {part.dead_fraction.mean():.1%} dead on train, {part.silent_fraction.mean():.1%} silent on test.")

# %% [markdown]
# MonoLoss is a training term that rewards high MonoScores. Where a method was trained without and with it, all else
# equal, the pair shows what it buys and what it costs.

# %%
pairs = compare.mono_pairs(compared)
if len(pairs):
    plots.save(stage, compare.mono_figure(pairs, styles), "monoloss", pairs)
    display(pairs[[c for c in pairs if not c.endswith("_apart")]].round(3))
print(words.monoloss_count(pairs) or "No method was trained both without and with MonoLoss.")

# %% [markdown]
# ## Definition card: what others would have printed
#
# Papers mean different things by FVU, R² and "explained variance". The same reconstructions, by each convention; then
# shifted by a constant, and replaced by the mean. Only the first line of each kind is used in this repo. A convention
# that gives the mean a good score, or does not see the shift, cannot be compared with it.

# %%
card = definitions(data, subjects)
plots.table(stage, card, "definitions")
display(card[card["method"] == card["method"].iloc[0]].round(3) if len(card) else card)

# %%
if len(card):
    means = card.groupby(["quantity", "convention"], sort=False)[["shifted", "mean_predictor"]].mean()
    lenient = means.loc["fvu", "mean_predictor"].idxmin()
    by_it = means.loc[("fvu", lenient), "mean_predictor"]
    print(f"By '{lenient}' the mean predictor would have FVU {by_it:.2f}, not 1.")
    blind = means.loc["explained_variance", "shifted"].idxmax()
    unseen = means.loc[("explained_variance", blind), "shifted"]
    print(f"By '{blind}' a shifted reconstruction still explains {unseen:.2f}.")

# %% [markdown]
# ## Causes found
#
# A *cause* is one known error of one family. A feature is asked to tell images with the cause from **plausible images
# of the same family**, so that a detector of the family scores 0.5. Feature, sign and threshold are chosen on the
# validation images and scored on the test images. The ceiling is a linear probe on all of `x` or all of `y`; the
# controls are the best single unit of `x` and of `y`: a feature that does not beat those has gained nothing.

# %%
labelled = data.truth is not None and data.facts["labels"] == "plausibility"
reason = "" if labelled else "no truth: the errors of these images are not known, so there is nothing to check"
captioned = truth.captioned_causes(stage.input("01_embed") / "tables" / "01_encoder.csv")
checked = bool(labelled and subjects)
if not checked:
    print(f"Not checked: {reason}.")

# %%
if checked:
    known_causes = truth.Known.of(data)
    codes = [known_causes.codes(s) for s in subjects]
    causes = truth.causes_table(known_causes, subjects, codes, captioned)
    plots.save(stage, truth.causes_figure(causes), "causes", causes[truth.CAUSES])
    limits = causes.groupby("cause")[["ceiling", "best_x_dim", "best_y_dim"]].mean()
    display(causes.pivot_table(index="cause", columns="method", values="auroc", sort=False).join(limits).round(3))

# %%
for method, part in causes.groupby("method", sort=False) if checked else ():
    worst = part.loc[part["share_of_ceiling"].idxmin()]
    reached = (part["share_of_ceiling"] >= 0.95).mean()
    mean = f"mean AUROC {part.auroc.mean():.3f}"
    print(f"{method}: {reached:.0%} of cause and seed pairs reach 0.95 of the ceiling; {mean},")
    beats = (part["auroc"] > np.fmax(part["best_x_dim"], part["best_y_dim"])).mean()
    print(f"  worst {worst.auroc:.3f} ({worst.cause}); {beats:.0%} beat the best single unit of x and of y.")

# %% [markdown]
# ## How many features does it take?
#
# A probe on the best 1, 4 and 16 features. If 16 reach the ceiling and 1 does not, the cause is in the codes but *split*
# over features.

# %%
if checked:
    sparse = truth.sparse_table(known_causes, subjects, codes)
    plots.save(stage, truth.sparse_figure(sparse, styles), "sparse_probing", sparse)
    for method, part in sparse.groupby("method", sort=False):
        mean = part.groupby("k")["auroc"].mean()
        print(f"{method}: " + ", ".join(f"{auroc:.3f} with {k}" for k, auroc in mean.items()) + ".")

# %% [markdown]
# ## Turning a feature up and down
#
# A feature that finds a cause may still be idle. Here the feature that is most specific to each cause is scaled, on the
# test images on which it fires, and everything else of the image stays as it is: 0 removes it, 1 changes nothing. If it
# carries the error, the classifier's logit for *implausible* follows it; a random direction of the same length shows
# what any push of that size does.

# %%
if checked and classifier is not None:
    steered = truth.steering_table(data, subjects, classifier, causes, seed=seed)
    plots.save(stage, truth.steering_figure(steered, styles), "steering", steered)
    ends = steered.pivot_table(index="method", columns="scale", values=["change", "control"], sort=False)
    for method, line in (ends.round(2) + 0.0).iterrows():  # + 0.0: never -0.00
        print(f"{method}: logit {line['change', 0]:+.2f} without, {line['change', 4]:+.2f} at four times;", end=" ")
        print(f"a random direction {line['control', 0]:+.2f} and {line['control', 4]:+.2f}.")

# %% [markdown]
# ## What the features stand for
#
# For every feature: which attribute of the image removes most of the uncertainty about its firing, the cause, the
# family, or a nuisance such as background, palette or style? A feature that codes a nuisance may still have a high
# error ratio by luck; it is no error feature. *Truly* an error feature: at least 80% of its 20 strongest validation
# images share one cause, and that cause is enriched among its test images.

# %%
if checked:
    kinds = truth.attributes_table(known_causes, subjects, codes)
    shares = truth.attribute_shares(kinds)
    plots.save(stage, truth.attributes_figure(shares), "kinds", shares)
    truly = kinds[kinds["is_error"]].groupby("method", sort=False)
    print("Truly error features per coder:", {m: round(len(p) / p["seed"].nunique(), 1) for m, p in truly})

# %%
if checked:
    nuisance = kinds[kinds["kind"] == "nuisance"].groupby(["method", "attribute"], sort=False)
    table = nuisance.agg(n_features=("feature", "size"), explained=("explained_nuisance", "mean")).reset_index()
    plots.table(stage, table, "nuisances")
    print(f"The {min(8, len(table))} most frequent of {len(table)}:")
    display(table.sort_values("n_features", ascending=False).head(8).round(2).reset_index(drop=True))

# %% [markdown]
# ## Splitting and absorption
#
# How many error features share a cause; on how many of the cause's images the best one fires, and any of them; and how
# often the best one is silent when another fires (absorption).

# %%
if checked:
    split = truth.splitting_table(known_causes, subjects, codes, causes, kinds)
    plots.table(stage, split, "splitting")
    columns = ["n_features", "recall_parent", "recall_any", "absorption"]
    shown = split.groupby("method", sort=False)[columns].mean()
    display(shown.round(2))
    print(f"Most split: {shown.n_features.idxmax()}, {shown.n_features.max():.1f} error features per cause;")
    absorbed = shown.absorption.dropna()
    most = f"{absorbed.idxmax()}, silent on {absorbed.max():.0%} of them" if len(absorbed) else "none"
    print(f"  most absorbed: {most}.")

# %% [markdown]
# ## Answer

# %%
if checked:
    print(known.reading(causes))
print(f"Measured: {len(done)} coders; left out with a reason: {len(metrics) - len(done)}.")

# %% [markdown]
# Limits: methods are ranked within one target and L0 only, and intervals over a few seeds are wide; AUROC of the best of many
# features, chosen on validation images, is that of the one feature that a person with labels would have picked, not of
# a feature found without them. Notebook 05 shows the features' images, 06 names them and judges them without the truth.

# %%
summary = dict(n_coders=len(done), n_skipped=len(metrics) - len(done), causes_checked=bool(checked), reason=reason)
stage.finish(provides=["zero_shot"] * (task is not None), **summary)
