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
# # 07 · What does this image model get physically wrong, how sure are we, and which method says it best?
#
# Everything before this wrote its artifacts; here they are read, nothing is trained. Each method's features are counted as
# error features by three scores, over the same denominator. Then the features are put to use: on generators whose
# images no stage has learned from, and on single new images.
#
# *Needs* the artifacts of 01 to 06. *Makes* the tables of relevance, generators and labels, and the report's `README.md`.
# *Takes* about 20 seconds for the demo.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of permutations, bootstraps and the choice of new images
label_images = ""  # folder of new images to label; empty: some of the generators' images, or held-out ones
n_label_images = 24  # at most so many
remark = ""  # what the data are, and how the settings differ from the published ones: stands at the top of the report

# %%
import pandas as pd
from IPython.display import display

from mtlib import plots
from mtlib.embed import store
from mtlib.report import figures, labels, results
from mtlib.report.gains import gains
from mtlib.report.reader import Reader
from mtlib.report.report import write_report
from mtlib.run.stage import Stage

plots.use_style()
params = dict(seed=seed, label_images=label_images, n_label_images=n_label_images, remark=remark)
stage = Stage("07_results", run_dir, stage_dir, params=params)
data = store.open_data(stage)
reader = Reader.of_stage(stage)
why = results.nothing_to_judge(reader)
print(f"interpreted: {', '.join(reader.methods()) or 'no method'}" + (f"; {why}" if why else ""))

# %% [markdown]
# ## How much of each method is about errors?
#
# Three scores, each over *all* latents of a method; a feature that fires on fewer than 10 test images is not assessed and
# counts as no.
#
# - **threshold**: at least 95% of the images on which the feature fires are labelled implausible (the published rule);
# - **enriched**: more implausible images than the base rate explains (Fisher exact, false discovery rate 5%);
# - **judge**: a judge that sees the images or the name says that it is a physical error.

# %%
long = results.relevance_long(reader)
relevance = results.relevance_wide(reader, long)
plots.table(stage, relevance, "relevance")
details = (
    "_n",
    "_low",
    "_high",
    "_refused",
    "_failed",
    "_skipped",
)  # counts and intervals: in the table and the figure
display(relevance[[c for c in relevance if not c.endswith(details)]].round(3))

# %%
if len(long):
    plots.save(stage, figures.relevance_bars(long), "relevance_scores", long)

# %%
if len(long):
    for score in ("relevance_threshold", "relevance_enriched"):
        own = long[long["score"] == score].sort_values("share")
        least, most = own.iloc[0], own.iloc[-1]
        print(
            f"{score}: {least.share:.1%} ({least.method}) to {most.share:.1%} ({most.method}) of {most.n_latents} latents;"
        )
        print(f"  95% intervals [{least.low:.1%}, {least.high:.1%}] and [{most.low:.1%}, {most.high:.1%}].")
else:
    print(f"No relevance: {why or 'no method was interpreted'}.")

# %% [markdown]
# ## What does our preset gain over the published one?
#
# Both at the same measured L0, wherever this run has both: what each level leaves unexplained, dead latents, causes found,
# relevance.

# %%
gained = gains(reader)
if len(gained):
    plots.table(stage, gained, "gains")
    display(gained.round(3))
else:
    print("This run does not have both methods at one L0.")

# %% [markdown]
# ## Would shuffled labels have looked as good?
#
# The test labels are shuffled within each family, 200 times, and the enriched features counted again. A run of the null
# should find nothing at all in at least 92% of the cases.

# %%
null = results.null_table(reader, data, seed)
if len(null):
    plots.table(stage, null, "null")
    display(null.round(3))

# %%
for line in null.itertuples():
    print(
        f"{line.method}: {line.observed} enriched features; shuffled, {line.runs_with_discovery:.1%} of runs find any."
    )

# %% [markdown]
# ## Which generator fails most?
#
# The classifier flags images of generators that no stage has learned from. It misses errors and raises false alarms, so the
# share it flags is corrected by its rates on the validation images (Rogan-Gladen). Both samples are bootstrapped for the
# interval. On the demo the true rates are known.

# %%
no_generators = results.why_no_generators(data)
if no_generators:
    ranking = pd.DataFrame([{"generator": "", "status": "skipped", "reason": no_generators}])
    plots.table(stage, ranking, "generators")
else:
    ranking = results.generator_ranking(data, seed)
    plots.save(stage, figures.generator_rates(ranking), "generators", ranking)
display(ranking.round(3))

# %%
if no_generators:
    print(f"No ranking: {no_generators}.")
else:
    first, last = ranking.sort_values("rank").iloc[[0, -1]].itertuples()
    print(f"{first.generator} fails least, {first.corrected_rate:.1%} [{first.low:.1%}, {first.high:.1%}];")
    print(f"{last.generator} most, {last.corrected_rate:.1%} [{last.low:.1%}, {last.high:.1%}].")

# %% [markdown]
# ## What goes wrong in each generator?
#
# The error features of the first method that has them (enriched on test *and* called an error by its judge, one per name)
# and how often each fires on each generator's images.

# %%
named = {m: results.error_features(reader, m) for m in reader.methods()} if not why else {}
method = next((m for m, shown in named.items() if len(shown)), next(iter(reader.methods()), ""))
shown = named.get(method, pd.DataFrame())
if len(shown) and not no_generators:
    firing = results.generator_features(reader, data, method, shown)
    plots.save(stage, figures.generator_heatmap(firing), "generator_features", firing)

# %%
if len(shown) and not no_generators:
    spread = firing.groupby("phrase")["rate"].agg(lambda r: r.max() - r.min()).sort_values()
    print(
        f"{method}: {len(shown)} error features; the generators differ most in: {spread.index[-1]} ({spread.iloc[-1]:.1%})."
    )
else:
    print(f"Skipped: {why or no_generators or 'no feature is both enriched and called an error by its judge'}.")

# %% [markdown]
# ## What does it say of a new image?
#
# Each image goes through the encoder and one sparse coder; the features whose activation exceeds 0.5 (the published
# threshold) explain it. This is what `Labeler.get_explanations(image)` returns; here those that the judge calls errors stand
# first, then the others, each by activation.

# %%
from mtlib.judge.labeler import Labeler

images, what = labels.new_images(data, label_images, stage.root, n_label_images, seed)
if images and method:
    labelled, explained = labels.label_table(Labeler(stage.run_dir, method), images)
    plots.table(stage, labelled, "labels")
    if data.pictures:
        plots.save(stage, figures.labelled_images(explained), "labels", labelled)
else:
    labelled = pd.DataFrame([{"image": "", "status": "skipped", "reason": what if method else "no interpreted method"}])
    plots.table(stage, labelled, "labels")
print(f"The first {min(12, len(labelled))} of {len(labelled)} lines:")
display(labelled.head(12))

# %%
fired = labelled[labelled["status"] == "ok"]
print(f"{what}: {fired['image'].nunique()} have explanations, {len(fired)} in all.")

# %% [markdown]
# ## Answer
#
# The report below answers the question with this run's numbers and states its limits. It is the last notebook; the
# [viewer](viewer.ipynb) lets you look at every feature.

# %%
from mtlib.report.answer import answer
from mtlib.report.report import limits

print(answer(reader).replace("**", ""))
print("\nLimits:", *limits(reader), sep="\n- ")

# %%
write_report(stage)
stage.finish(methods=reader.methods(), judged=not why, generators="" if no_generators else "ranked")
