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
# *Needs* the artifacts of 01 to 06. *Makes* the tables of relevance, generators and labels.
# *Takes* about 20 seconds for the demo.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of permutations, bootstraps and the choice of new images
label_images = ""  # folder of new images to label; empty: some of the generators' images, or held-out ones
n_label_images = 24  # at most so many
n_where = 5  # images of each error on which it is shown where its feature fires; 0: none
explanations = []  # JSONL files of explanations to label them with, published or your own, instead of those of 06
label_method = ""  # whose features they are; empty: the first method that has error features
published = False  # also write files as the published systems do, into reports/<run>/published/
remark = ""  # what the data are, and how the settings differ from the published ones: stands at the top of the report

# %%
from mtlib import plots
from mtlib.embed import store
from mtlib.judge import new_images
from mtlib.judge.labeler import Labeler
from mtlib.report import figures, relevance_tables
from mtlib.report.reader import Reader
from mtlib.run.stage import Stage

# %%
plots.use_style()
stage = Stage("07_results", globals())
data = store.open_data(stage)
reader = Reader.of_stage(stage)
reader.methods()

# %% [markdown] needs="labels coders"
# ## Which errors were found?
#
# A line for each error that a single feature stands for. Where the truth is known, these are the causes that the best method *finds*:
# the feature's activation ranks the images with the cause before all others (average precision, AP). Where it is not, they are features
# that are enriched for implausible images, specific on the validation images, and called an error by the judge, one per name.

# %% needs="labels coders"
found = relevance_tables.errors_found(reader, data)
stage.figure(
    figures.errors_found(found, reader, data) if data.pictures else None,
    "errors",
    found,
    "The errors found: the test images on which the feature of each fires most.",
)
found[["error", "phrase", "feature", "ap", "error_ratio", "n_active_test", "generator", "rate"]].round(3)

# %% [markdown] needs="labels coders images pictures n_where"
# ## Where do these features fire?
#
# Red is where. Of tokens on a grid: how strongly the feature fires there. Of a convolutional encoder: what each place of its last layer
# with 8 x 8 places or more adds to the feature (activation times gradient where that is positive). Of others: what the feature loses when
# that part of the image is hidden. Each map is scaled by its own maximum, so it says where, not how much. Drawn scenes have a frame
# around the known error: all that differs from the same scene without it.

# %% needs="labels coders images pictures n_where"
shown, heat = relevance_tables.errors_heat(found, reader, data, stage.out, n_where)
caption = "Where the features of the errors found fire, on their strongest test images; framed: the known error."
stage.figure(figures.errors_where(found, data, shown, heat), "where", shown, caption)

# %% [markdown] needs="labels coders"
# ## How much of each method is about errors?
#
# Three scores, each over *all* latents of a method; a feature that fires on fewer than 10 test images is not assessed and
# counts as no.
#
# - **threshold**: at least 95% of the images on which the feature fires are labelled implausible (the published rule);
# - **enriched**: more implausible images than the base rate explains (Fisher exact, false discovery rate 5%);
# - **judge**: a judge that sees the images or the name says that it is a physical error.

# %% needs="labels coders"
long = relevance_tables.relevance_long(reader)
relevance = relevance_tables.relevance_wide(reader, long)
headings = {"method": "method", "target": "learns", "n_latents": "latents", "assessed_rate": "assessed"}
headings |= {score: name for score, name in relevance_tables.HEADINGS.items() if score in relevance}
stage.table(relevance, "relevance", "Share of all latents that each score calls an error feature.", headings)

# %% needs="labels coders"
caption = "Share of all latents that each score calls an error feature; bars are 95% intervals."
stage.figure(figures.relevance_bars(long), "relevance_scores", long, caption)

# %% [markdown] needs="labels coders"
# Where two intervals overlap, the methods cannot be told apart by that score; and only methods at one L0 can be compared at
# all. Of the published rule little is left where features fire on many images, since few images are then enough to miss it.

# %% [markdown] needs="labels coders"
# ## Would shuffled labels have looked as good?
#
# The test labels are shuffled within each family, 200 times, and the enriched features counted again. A run of the null
# should find nothing at all in at least 92% of the cases.

# %% needs="labels coders"
null = relevance_tables.null_table(reader, data, seed)
headings = {"method": "method", "observed": "enriched features", "runs_with_discovery": "shuffled runs with any"}
headings |= {"low": "low", "high": "high", "n_permutations": "runs"}
stage.table(null, "null", "Enriched features, and how often shuffled labels have any.", headings)

# %% [markdown] needs="generators judged"
# ## Which generator fails most?
#
# The classifier flags images of generators that no stage has learned from. It misses errors and raises false alarms, so the
# share it flags is corrected by its rates on the validation images (Rogan-Gladen). Both samples are bootstrapped for the
# interval. On the demo the true rates are known.

# %% needs="generators judged"
ranking = relevance_tables.generator_ranking(data, seed)
caption = "Failure rate of each generator: flagged, corrected with its 95% interval, and true where known."
stage.figure(figures.generator_rates(ranking), "generators", ranking, caption)
ranking.round(3)

# %% [markdown] needs="generators judged coders"
# ## What goes wrong in each generator?
#
# The error features of the first method that has them (enriched on test *and* called an error by its judge, one per name)
# and how often each fires on each generator's images. Where a row differs most, the generators fail differently.

# %% needs="generators judged coders"
firing = relevance_tables.generator_features(reader, data, relevance_tables.first_with_errors(reader))
caption = "How often the error features fire on each generator's images."
stage.figure(figures.generator_heatmap(firing), "generator_features", firing, caption)

# %% [markdown] needs="images|label_images coders"
# ## What does it say of a new image?
#
# Each image goes through the encoder and one sparse coder. Where validation images are labelled, only error features explain it
# that these bear out: enriched, called an error, above a threshold of their own, pushing the image's logit up; each with its
# `precision` there. Without labels nothing can be checked: all features above 0.5 (the published threshold) are told, marked
# *unverified*, as are all with `published`. This is what `Labeler.get_explanations(image)` returns; here errors stand first.

# %% needs="images|label_images coders"
images = new_images.new_images(data, label_images, stage.root, n_label_images, seed)
method = label_method or relevance_tables.first_with_errors(reader)
labeler = Labeler(stage.run_dir, method, records=explanations, as_published=published)
labelled, explained = new_images.label_table(labeler, images)
caption = "New images with the features that explain them."
stage.table(labelled, "labels", caption)

# %% needs="images|label_images coders published"
new_images.write_labels(stage.out / "published" / "labels", labeler, explained, data.pictures)

# %% needs="images|label_images coders pictures"
stage.figure(figures.labelled_images(explained), "labels", labelled, caption)

# %% [markdown]
# ## Answer
#
# The report answers the question with this run's numbers and states its limits: `reports/<run>/README.md`, written after the
# last notebook. Beside it `index.html` shows every feature and image in any browser; so does the [viewer](viewer.ipynb), which
# labels images of yours, too.

# %%
stage.finish(methods=reader.methods())
