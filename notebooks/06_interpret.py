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
# # 06 · What is each feature, is it a physical error, and is the judge right?
#
# A feature that fires on implausible images may stand for an extra finger, or for a striped background that happened to
# come with it. A *judge* looks at the images of each feature, gives it a name, and rules: a physical error or not. The
# *keyless* judge needs no key: it compares the images with phrases through the encoder's text tower, and rules by the labels of
# the validation images where there are any. The *lmm* judge asks a multimodal model over an OpenAI-compatible API, and the
# keyless one stands beside it. On the demo the truth of every image is known, so the judges are judged too.
#
# *Needs* the embeddings and phrases of 01 and the features of 05. *Makes* `explanations/<method>/`: verdicts of all
# judges, the published records (`feature_analysis.jsonl`, `error_analysis.jsonl`), which features may label new images and
# from which activation on (`thresholds.parquet`), and a model's raw answers (`answers.jsonl`). *Takes* about 20 seconds on two
# cores for the demo; a model takes as long as its server does.

# %% tags=["parameters"] needs="coders" settings="mtlib.judge.settings:JudgeConfig mtlib.ask.client:Reached"
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
judge = "keyless"  # who names features and rules on them: "keyless", or "lmm" (a multimodal model, with a key)
max_features = 0  # judge only this many features per method, the most surely tied to errors first; 0: all
label_precision = 0.98  # a feature labels images from where this share of the val images is right
seed = 0  # of the images shown to a model, and of the held-out ones
base_url = "https://openrouter.ai/api/v1"  # lmm: an OpenAI-compatible server; one on this machine needs no key
model = "anthropic/claude-3-haiku"  # lmm: the model's name there
also_named = []  # lmm: other names under which a hub may report that model and be believed
temperature = 0.0  # lmm: left out where the server takes none
max_tokens = 500  # lmm: of one answer; 8 times as many where the model does not end within it
images_as = "separate"  # lmm: "separate", or all images of a feature in one "collage" (cheaper)
n_images = 20  # lmm: images shown per feature, drawn by the seed where top_n of 04 keeps more
show_error_ratio = False  # lmm: tell the model a feature's error ratio (published; it leaks the labels)
score_features = 40  # lmm: explanations per method that are tried on held-out images; 0: none
score_images = 10  # lmm: held-out images per explanation, half of them activating
flip_check = 0  # lmm: verdicts per method that are asked again under a change that should not matter; 0: none
dry_run = False  # lmm: tell the calls, tokens and cost, and ask nothing
concurrency = 4  # lmm: requests at a time
requests_per_minute = 0.0  # lmm: 0: no limit
max_calls = 0  # lmm: stop before more requests than this; 0: no limit
max_usd = 5.0  # lmm: stop before more is spent; 0: no limit
usd_per_million = [0.0, 0.0]  # lmm: price of tokens in and out; 0: known for this model, free on a server of yours
timeout_s = 120.0  # lmm: seconds for one question, retries included
published = False  # also write files as the published systems do, into reports/<run>/published/

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Image, display

from mtlib import plots
from mtlib.ask import ledger
from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import Endpoint, connect
from mtlib.ask.interview import Interview, plan_jobs
from mtlib.ask.parse import parse
from mtlib.ask.shown_images import ShownImages
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed import store
from mtlib.embed.encoders import Encoder
from mtlib.features import familiar
from mtlib.judge import agreement, keyless, lmm, records, scoring, thresholds, verdicts
from mtlib.judge.settings import JudgeConfig
from mtlib.judge.text_space import naming
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import interpreted
from mtlib.run.stage import Stage, table_of
from mtlib.truth.tables import captioned_causes

# %%
plots.use_style()

# %%
stage = Stage("06_interpret", globals())
config = stage.settings(JudgeConfig)
data, coders = store.open_data(stage), interpreted(stage.input("03_train"))
folders = {m: stage.input("05_features") / "features" / m for m in coders.loc[coders["status"] == "ok", "method"]}
features = {m: pd.read_parquet(folder / "features.parquet") for m, folder in folders.items()}
tops = {m: pd.read_parquet(folder / "top_images.parquet") for m, folder in folders.items()}

# %% [markdown]
# ## How the keyless judge works
#
# *Verdict.* A feature is an error when at least `JudgeConfig.keyless_share` of its strongest validation images are of one family, by
# the nearest phrases, and labelled implausible; and when it is *enriched*: of all validation images on which it fires, more are
# implausible than the base rate explains (Wilson 95%). The test images take no part, since the judge is scored on them. An image
# without a label is told by text alone: by whether it looks more like its family's errors or its normal state.
# *Name.* The strongest images are averaged, weighted by activation; what all images have in common is subtracted, and likewise for
# the phrases. An error is named by the nearest error phrase of its family, anything else by the nearest phrase that names no error.


# %%
def load(method):
    return SparseCoder.from_pretrained(stage.input("03_train") / coders.set_index("method")["folder"][method])


on_val = {m: thresholds.of_val(load(m), tops[m], data, config) for m in features}
usual = familiar.of_images(data, stage.out)
if usual:
    stage.say("familiar", usual)

# %% [markdown] needs="text"
# ## May the text tower name anything here?
#
# Some word is the nearest to any picture, also for an encoder that cannot read it. So before a name is shown it is measured, on what the
# run knows of its own images, how often the nearest text is right; an error phrase must also go with the labels.

# %%
card = table_of(stage.input("01_embed"), "01_encoder")
may = naming(data, card, lambda: Encoder.of(data.facts))
if len(may.measured):
    stage.table(may.measured, "naming", "Whether words may name features here.", {c: c for c in may.measured})

# %%
said, nothing = {}, ""
for method, table in features.items():
    own = keyless.by_text(table, tops[method], data, config, on_val[method], may[:2])
    said[method] = [verdicts.only_first(own, table, config.max_features)]

# %% [markdown] needs="text"
# A family whose images lie equally near to both of its sides is one that the text tower alone cannot judge (`blind`): there only
# labels make an error.

# %% needs="text"
stage.table(
    keyless.text_sight(data),
    "text_sight",
    caption="Can the text tower tell a family's errors from its normal state? Margins of its validation images, no label used.",
    headings={"family": "family", "n_images": "images", "spread": "spread of the margins", "blind": "cannot be judged"},
)

# %% [markdown] needs="judge=lmm"
# ## Asking a multimodal model
#
# The published way: the model sees the strongest validation images of a feature and says what they have in common; then,
# given that, whether they share a physical or anatomical error, and of which kind. It is told nothing of labels or
# activations, unless `show_error_ratio` asks for it. Only features that fire on at least 10 test images are asked about,
# those of all methods in turns, the most surely tied to errors first, so that a run that stops at a limit is of use.
# Every answer is kept in a ledger beside the stages: asked once, it is never paid for again.

# %% needs="judge=lmm"
endpoint = connect(stage.settings(Endpoint), config.dry_run)
interview = Interview(Asker(endpoint, ledger.place(stage.run_dir), parse), ShownImages(data, config.images_as))
shown = (config.n_images, config.keyless_min_images, config.max_features, config.seed, data.image_root is not None)
jobs, left = plan_jobs(features, tops, *shown)
estimated = lmm.estimate(jobs, interview, config)
estimated.round(2)

# %% needs="judge=lmm dry_run=False"
judged = lmm.by_model(features, jobs, left, interview, config.show_error_ratio, lmm.cannot_rule(data))
for method in features:
    said[method].append(judged.verdicts[method])

# %% needs="judge=lmm dry_run=False"
answered = lmm.accounted(features, left, interview)
parts = ["answered", "refused", "failed", "unasked", "not_asked"]
assert (answered[parts].sum(axis=1) == answered["assessed"]).all()
stage.table(
    answered,
    "answers",
    caption="What became of every assessed feature, by the last of its two questions.",
    headings={"method": "method", "assessed": "features"} | {p: p.replace("_", " ") for p in parts},
)

# %% [markdown]
# ## What each judge said

# %% needs="truth"
for method, table in features.items():
    said[method].append(verdicts.by_truth(table))

# %%
spoken = {method: pd.concat(frames, ignore_index=True) for method, frames in said.items()}
counts = verdicts.verdict_counts(spoken)
assert (counts[[v for v in verdicts.VERDICTS if v in counts]].sum(axis=1) == counts["n_latents"]).all()
stage.table(
    counts,
    "verdicts",
    caption="Verdicts of each judge: what was refused, failed or skipped is no verdict.",
    headings={c: c.replace("_", " ") for c in counts if c != "n_latents"} | {"n_latents": "latents"},
)

# %% [markdown]
# Why the others have no verdict:

# %%
verdicts.unruled(spoken, config.main)

# %% [markdown]
# ## Names and verdicts
#
# The features most surely tied to implausible images, with what the judge says of them. The last columns come from
# the labels of test images and from the truth; the judge has seen neither.

# %%
named = verdicts.beside(features, spoken, config.main)
named.groupby("method", sort=False).head(8).set_index(["method", "feature"]).round(2)

# %% [markdown]
# A judge that calls many features by few names has not told them apart.

# %%
named.groupby("method", sort=False)["phrase"].agg(features="size", names="nunique", most_frequent=lambda p: p.mode()[0])

# %% needs="pictures"
for method, folder in list(folders.items())[:2]:
    for collage in sorted((folder / "collages").glob("*.jpg"))[:2]:
        display(named[(named["method"] == method) & (named["feature"] == int(collage.stem))])
        display(Image(filename=collage))

# %% [markdown]
# ## Is the judge right?
#
# On the demo a feature is *truly* an error feature when at least 80% of its 20 strongest validation images show one and
# the same error, and that error is enriched among its test images. The published threshold rule (error ratio ≥ 0.95)
# stands beside the judge; it reads the labels of test images, which the judge does not. Two causes were never named in
# the captions on which the encoder was trained: there the judge cannot have read the answer, so they are counted apart.
# Without a truth the judge's word stands unchecked.

# %%
everyone = {m: pd.concat([spoken[m], verdicts.by_threshold(t)], ignore_index=True) for m, t in features.items()}
known = captioned_causes(stage.input("01_embed") / "tables" / "01_encoder.csv")
scores = agreement.against_truth(everyone, features, known, coders[coders["status"] != "ok"])
headings = {"method": "method", "judge": "judge", "captioned": "causes", "n_assessed": "judged", "n_error": "said"}
headings |= {"n_truth": "true errors", "precision": "precision", "recall": "recall", "f1": "F1", "kappa": "kappa"}
caption = "Judges against the truth, all causes, and those that the encoder's captions named or did not."
stage.table(scores, "judges", caption, headings | {"reason": "reason"})

# %% needs="truth"
counts = agreement.confusion(spoken, features, config.main)
fig, ax = plt.subplots(figsize=(6.5, 1.2 + 0.4 * len(counts)))
shown = counts.set_index("method")[agreement.CELLS].rename(columns=lambda cell: cell.replace("_", " "))
sns.heatmap(shown, annot=True, fmt="d", cmap="Blues", cbar=False, ax=ax)
stage.figure(fig, "confusion", counts, caption="What the judge and the truth call an error, features of each method.")

# %% needs="truth"
frame = scores[scores["judge"] != ""].melt(["method", "judge", "captioned"], ["precision", "recall", "f1"], "score")
look = dict(hue="captioned", style="captioned", row="judge", height=1.5 + 0.42 * frame["method"].nunique())
grid = plots.facets(sns.relplot, frame, x="value", y="method", col="score", s=60, **look)
grid.set_titles("{row_name}: {col_name}")
stage.figure(grid.figure, "judge_scores", frame, caption="Precision, recall and F1 of each judge against the truth.")

# %% needs="truth"
mean = agreement.scores_of(scores, config.main)
stage.say(
    "judge_f1",
    f"Against the truth the {config.main} judge's F1 is {mean.f1['all']:.2f} in the mean of {mean.n_methods['all']:.0f} methods "
    f"(goal 0.80; kappa {mean.kappa['all']:.2f}): {mean.f1['captioned']:.2f} on causes that captions named, "
    f"{mean.f1['uncaptioned']:.2f} on the others.",
)

# %% [markdown] needs="labels"
# ## Do the judges agree?
#
# Every judge against every other, on the features on which both have a verdict. Cohen's kappa takes out the agreement
# that chance alone would give; precision and recall take the reference for the truth.

# %% needs="labels"
stage.table(
    agreement.pairwise(everyone),
    "agreement",
    caption="Every judge against every other, on the features on which both have a verdict.",
    headings={"method": "method", "judge": "judge", "reference": "reference", "n": "features", "agreement": "agreement"}
    | {"kappa": "kappa", "precision": "precision", "recall": "recall"},
)

# %% [markdown] needs="truth head"
# ## Are labels of new images right?
#
# A feature may label an image when it is enriched and called an error, when its activation is above the lowest one from which
# `label_precision` of the validation images are implausible and, by text, of its family, and when it pushes the image's logit up.
# On test images the truth is known. *Precision*: of the error labels on implausible images, the share whose phrase names the image's
# own cause (*once*: several labels of one cause count once per image). *Recall*: implausible images with at least one such label.
# Beside it: every feature that the text alone calls an error, wherever its activation is above 0.5, as published; and what the
# classifier and the text tower say without any feature.

# %% needs="truth head"
classifier = Classifier.load(stage.input("02_classify") / "classifier")
labels = {}
for method, table in features.items():
    text = keyless.by_text(table, tops[method], data, config)
    ways = {"text alone, above 0.5": (text, None), "chosen on val": (said[method][0], on_val[method])}
    labels[method] = thresholds.label_scores(load(method), classifier, data, ways)
labels["none"] = thresholds.without_features(data)

# %% needs="truth head"
headings = {"method": "method", "labels": "labels", "n_labels": "on implausible images", "precision": "precision"}
headings |= {"precision_once": "once", "recall": "recall"}
headings |= {"plausible_without_error_label": "plausible images without one"}
frame = pd.concat(labels, names=["method"]).reset_index(level=0)
stage.table(frame, "labels", "Error labels of test images against the truth; intervals in the CSV.", headings)

# %% [markdown] needs="judge=lmm dry_run=False score_features"
# ## Do the explanations hold on images that nobody has seen?
#
# Of the test images, some on which a feature fires and as many on which it does not are mixed, and the model sorts them by
# the explanation alone. With the explanation of another feature it should do no better than chance: that is the control. As
# a second score it has to find the one image on which the feature does not fire, without any explanation.


# %% needs="judge=lmm dry_run=False score_features"
trials = scoring.held_out(jobs, judged.explanations, load, data, config)
outcomes = scoring.score(trials, judged.explanations, interview)

# %% needs="judge=lmm dry_run=False score_features"
tried = scoring.summary(outcomes, config)
stage.table(outcomes, "score_outcomes", caption="Every explanation on its held-out images.")
stage.table(
    tried,
    "scores",
    caption="Accuracy on held-out images: told by a feature's own explanation, by another one's, and of finding the intruder.",
    headings={"method": "method", "kind": "told by", "n_features": "features", "n_lost": "without an answer"}
    | {"accuracy": "accuracy", "low": "low", "high": "high", "chance": "chance"},
)

# %% needs="judge=lmm dry_run=False score_features"
rows = {method: i for i, method in enumerate(tried["method"].unique())}
fig, ax = plt.subplots(figsize=(6.5, 1.5 + 0.5 * len(rows)))
for k, (kind, own) in enumerate(tried.groupby("kind", sort=False)):
    bars = [own["accuracy"] - own["low"], own["high"] - own["accuracy"]]
    ax.errorbar(own["accuracy"], own["method"].map(rows) + 0.2 * k, xerr=bars, fmt="os^"[k], capsize=3, label=kind)
    ax.axvline(own["chance"].iloc[0], color=f"C{k}", lw=1, ls=":")
ax.set(xlabel="accuracy on held-out images (dotted: chance)", xlim=(0, 1), yticks=[*rows.values()], yticklabels=[*rows])
plots.legend(fig)
stage.figure(fig, "explanations", tried, caption="Explanations on held-out images.")

# %% [markdown] needs="judge=lmm dry_run=False flip_check"
# ## Would the model have said the same?
#
# A verdict that turns when the labels are shown, or when an order is written into the images, is not about the images. Text
# inside an image cannot change the form of an answer here, but it can change what a model says: the share of verdicts
# that it turned is a limit on what a verdict is worth.

# %% needs="judge=lmm dry_run=False flip_check"
stage.table(
    lmm.flip_check(jobs, judged, interview, config.flip_check, config.show_error_ratio),
    "flips",
    caption="Verdicts that turned when they were asked for again under a change that should not matter.",
    headings={"method": "method", "changed": "change", "n": "verdicts", "n_flipped": "turned", "flip_rate": "share"}
    | {"low": "low", "high": "high", "n_lost": "without a verdict"},
)

# %% needs="judge=lmm dry_run=False"
for method in features:
    interview.export(stage.out / "explanations" / method / "answers.jsonl", method)
interview.asker.close()

# %% needs="judge=lmm dry_run=False"
stage.table(
    pd.DataFrame([interview.usage()]),
    "usage",
    caption="What all answers took, replayed ones too.",
    headings={"model": "model", "answers": "answers", "tokens_in": "tokens in", "tokens_out": "out", "usd": "USD"},
)

# %% needs="judge=lmm dry_run=False"
nothing = lmm.got_nothing(interview)
stage.table(
    lmm.unanswered(interview),
    "unanswered",
    caption="Questions without a usable answer, in the words of the server; a run that got none at all ends with an error.",
    headings={"status": "status", "reason": "reason", "questions": "questions"},
)

# %% needs="judge=lmm dry_run=False"
used = interview.asker.usage
stage.say(
    "asked",
    f"{endpoint.model} at {endpoint.host}: {used.calls} requests, {used.replayed} answers replayed. {interview.asker.stopped}",
)

# %% needs="judge=lmm dry_run=False"
stage.say("server", f"What the server does in its own way: {'; '.join(interview.asker.told) or 'nothing'}.")

# %% [markdown]
# ## The published records
#
# Written for every method: what other tools will see. Beside them the table of interpretations as published
# for features of CLIP's layers: what has a picture, the most active first.

# %%
for method, own in spoken.items():
    records.write(stage.out / "explanations" / method, own, tops[method], config)
    on_val[method].to_parquet(stage.out / "explanations" / method / thresholds.FILE, index=False)

# %%
pictured = {m: {int(p.stem) for p in (folder / "collages").glob("*.jpg")} for m, folder in folders.items()}
tabled = records.interpretations(features, spoken, tops, config.main, pictured)
stage.table(tabled, "interpretations", caption="Interpretations in the published form.").head(8)

# %% needs="published"
records.write_published(stage.out / "published", spoken, folders, config.main)

# %% [markdown]
# ## Answer
#
# Every feature that fires on enough images has a name and, where there is something to judge, a verdict; on the demo the
# tables above say how far the verdicts can be believed. Limits: the keyless judge chooses among given phrases, and its text
# tower knows only errors that its captions named; a multimodal model can be led by what is written in an image, may have
# seen the images before, and answers differently after an update of its server. Next, notebook 07 puts all scores of all
# methods into one table.

# %%
told = may.names and f"features have no names: {may.names}"
if config.judge == "lmm" and config.dry_run:
    told = lmm.told(estimated)

# %%
stage.finish(
    config.provides,
    told=told,
    nothing=nothing,
    judge=config.main,
    methods=list(spoken),
    has_truth=data.truth is not None,
    unnamed=may.names,
    errors_unnamed=may.errors,
)
