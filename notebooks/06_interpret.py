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
# *keyless* judge needs no key and no labels: it compares the images with phrases through the encoder's text tower. The
# *lmm* judge asks a multimodal model over an OpenAI-compatible API, and the keyless one stands beside it. On the demo the
# truth of every image is known, so the judges are judged too.
#
# *Needs* the embeddings and phrases of 01 and the features of 05. *Makes* `explanations/<method>/`: verdicts of all
# judges, the published records (`feature_analysis.jsonl`, `error_analysis.jsonl`), and a model's raw answers
# (`answers.jsonl`). *Takes* about 20 seconds on two cores for the demo; a model takes as long as its server does.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
judge = "keyless"  # who names features and rules on them: "keyless", or "lmm" (a multimodal model, with a key)
max_features = 0  # judge only this many features per method, the most surely tied to errors first; 0: all
keyless_share = 0.8  # a feature is an error when this share of its top images looks like one family's error
keyless_min_images = 4  # features with fewer top images are not judged
seed = 0  # of the images shown to a model, and of the held-out ones
base_url = "https://openrouter.ai/api/v1"  # lmm: an OpenAI-compatible server; one on this machine needs no key
model = "anthropic/claude-3-haiku"  # lmm: the model's name there
images_as = "separate"  # lmm: "separate", or all images of a feature in one "collage" (cheaper)
n_images = 20  # lmm: images shown per feature
show_error_ratio = False  # lmm: tell the model a feature's error ratio (published; it leaks the labels)
score_features = 40  # lmm: explanations per method that are tried on held-out images; 0: none
score_images = 10  # lmm: held-out images per explanation, half of them activating
flip_check = 0  # lmm: verdicts per method that are asked again under a change that should not matter; 0: none
dry_run = False  # lmm: tell the calls, tokens and cost, and ask nothing
concurrency = 4  # lmm: requests at a time
requests_per_minute = 0.0  # lmm: 0: no limit
tokens_per_minute = 0.0  # lmm: 0: no limit
max_calls = 0  # lmm: stop before more requests than this; 0: no limit
max_usd = 5.0  # lmm: stop before more is spent; 0: no limit
usd_per_million = [0.25, 1.25]  # lmm: price of tokens in and tokens out
timeout_s = 120.0  # lmm: seconds for one question, retries included

# %%
import pandas as pd
from IPython.display import Image, display

from mtlib import plots
from mtlib.ask import ledger, records
from mtlib.ask.album import Album
from mtlib.ask.answers import Asker
from mtlib.ask.estimate import estimate
from mtlib.ask.interview import Interview, plan_jobs
from mtlib.ask.parsing import parse
from mtlib.embed import store
from mtlib.features.methods import interpreted
from mtlib.judge import agreement, judges, lmm, scoring
from mtlib.judge import figures as judge_figures
from mtlib.run.stage import Stage

plots.use_style()

# %%
judges.check_settings(judge, max_features, n_images, keyless_min_images, flip_check)
config = judges.KeylessConfig(min_images=keyless_min_images, share=keyless_share)
scored = scoring.ScoreConfig(features=score_features, images=score_images, seed=seed)
limits = dict(concurrency=concurrency, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
limits |= dict(max_calls=max_calls, max_usd=max_usd, timeout_s=timeout_s, usd_per_million=usd_per_million)
endpoint = lmm.connect(base_url, model, dry_run, **limits) if judge == "lmm" else None
params = dict(judge=judge, max_features=max_features, share=keyless_share, min_images=keyless_min_images)
params |= limits | dict(seed=seed, base_url=base_url, model=model, images_as=images_as, n_images=n_images)
params |= dict(show_error_ratio=show_error_ratio, score_features=score_features, score_images=score_images)
params |= dict(flip_check=flip_check, dry_run=dry_run)
stage = Stage("06_interpret", run_dir, stage_dir, params=params)
asks = judge == "lmm" and not dry_run
main = "lmm" if asks else "keyless"  # whose names and verdicts are shown and published

# %%
data = store.open_data(stage)
source = stage.input("05_features") / "features"
coders = interpreted(stage.input("03_train"))
features = {m: pd.read_parquet(source / m / "features.parquet") for m in coders.loc[coders["status"] == "ok", "method"]}
tops = {m: pd.read_parquet(source / m / "top_images.parquet") for m in features}
has_truth = data.truth is not None
kinds = data.phrases["kind"].value_counts().to_dict() if len(data.phrases) else {}
print(f"{len(data.phrases)} phrases {kinds}; labels: {data.facts['labels']}; truth known: {has_truth}.")

# %% [markdown]
# ## How the keyless judge works
#
# *Name.* The strongest validation images of a feature are averaged, weighted by activation; what all images have in
# common is subtracted, and likewise for the phrases; the nearest phrase is the name. *Verdict.* Each image goes to the
# family whose phrases are nearest, and is compared with the two sides of that family: "something is wrong" or "all is
# normal". When at least `keyless_share` of the images are of one family and on the wrong side, the feature is called an
# error. No label is used at any step, and the judge can only say what its phrases can say: a family whose images lie
# equally near to both sides is one it cannot judge, and it says so.

# %%
sight = judges.text_sight(data, config)
plots.table(stage, sight, "text_sight")
display(sight.round(3))
blind = sight.loc[sight["blind"].astype(bool), "family"].tolist()
print(f"Families whose errors the phrases do not tell from the normal state: {', '.join(blind) or 'none'}.")

# %%
said = {m: [judges.only_first(judges.keyless(t, tops[m], data, config), t, max_features)] for m, t in features.items()}
for method, table in features.items():
    said[method] += [judges.truth(table)] if has_truth else []

# %% [markdown]
# ## Asking a multimodal model
#
# The published way: the model sees the strongest validation images of a feature and says what they have in common; then,
# given that, whether they share a physical or anatomical error, and of which kind. It is told nothing of labels or
# activations, unless `show_error_ratio` asks for it. Only features that fire on at least 10 test images are asked about,
# those of all methods in turns, the most surely tied to errors first, so that a run that stops at a limit is of use.
# Every answer is kept in a ledger beside the stages: asked once, it is never paid for again.

# %%
if judge == "lmm":
    album = Album(data, images_as)
    jobs, left = plan_jobs(features, tops, n_images, keyless_min_images, max_features, seed, album.has_images)
    asker = Asker(endpoint, ledger.place(stage.run_dir, endpoint), parse)
    interview = Interview(asker, album)
    plan = estimate(jobs, interview, show_error_ratio, scored, flip_check)
    display(plan.round(2))
    total = plan.iloc[-1]
    print(f"{model} at {endpoint.host}: {total.calls} calls to make, {total.replayed} answers are there already;")
    print(f"about {total.tokens_in:,} tokens in and at most {total.tokens_out:,} out; {total.usd:.2f} USD at most.")
    print(
        "Dry run: nothing is asked."
        if dry_run
        else f"Stops at {endpoint.max_calls} calls or {endpoint.max_usd:g} USD (0: no limit)."
    )
else:
    print('Not asked: judge = "keyless". Set judge = "lmm", and a key in the environment, to ask a model.')

# %%
if asks:
    judged = lmm.judge(features, jobs, left, interview, show_error_ratio, lmm.cannot_rule(data))
    for method in features:
        said[method].insert(1, judged.verdicts[method])
    print(f"{asker.usage}" + (f"; stopped: {asker.stopped}" if asker.stopped else ""))

# %%
if asks:
    answered = lmm.accounted(features, left, interview)
    plots.table(stage, answered, "answers")
    display(answered)
    parts = ["answered", "refused", "failed", "unasked", "not_asked"]
    assert (answered[parts].sum(axis=1) == answered["assessed"]).all()

# %% [markdown]
# ## What each judge said

# %%
verdicts = {m: pd.concat(frames, ignore_index=True) for m, frames in said.items()}
for method, frame in verdicts.items():
    folder = stage.out / "explanations" / method
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "verdicts.parquet", index=False)

# %%
counts = judge_figures.verdict_counts(verdicts)
plots.table(stage, counts, "verdicts")
display(counts)
kinds = [v for v in judges.VERDICTS if v in counts]
assert counts.empty or (counts[kinds].sum(axis=1) == counts["n_latents"]).all()
for row in counts[counts["judge"] == main].itertuples():
    print(f"{row.method}: {row.error + row.no_error} of {row.n_latents} features judged, {row.error} called an error.")
for row in coders[coders["status"] != "ok"].itertuples():
    print(f"{row.method} has no features to judge: {row.reason}.")

# %%
for method, frame in verdicts.items():
    unruled = (frame["judge"] == main) & ~frame["verdict"].isin(["error", "no_error"])
    reasons = frame.loc[unruled, "detail"].str.slice(0, 80).value_counts()
    print(f"{method}: not judged: {reasons.head(3).to_dict() if len(reasons) else 'none'}")

# %% [markdown]
# ## Names and verdicts
#
# The features most surely tied to implausible images, with what the judge says of them. The last two columns come from
# the labels and from the truth; the judge has seen neither.

# %%
for method, table in features.items():
    joined = judges.beside(table, verdicts[method], main)
    print(method)
    display(joined.head(8).round(2))

# %%
named = pd.concat(
    [f[(f["judge"] == main) & (f["phrase"] != "")].assign(method=m) for m, f in verdicts.items()] or [pd.DataFrame()]
)
if len(named):
    common = named.groupby("method")["phrase"].agg(lambda p: p.value_counts().index[0])
    for method, part in named.groupby("method", sort=False):
        print(
            f"{method}: {part['phrase'].nunique()} different names for {len(part)} features; most frequent: {common[method]!r}."
        )

# %%
for method in list(verdicts)[:2]:
    joined = judges.beside(features[method], verdicts[method], main)
    pictures = {int(p.stem): p for p in (source / method / "collages").glob("*.jpg")}
    for row in joined[joined["feature"].isin(pictures)].head(2).itertuples():
        print(f"{method}, feature {row.feature}: {row.phrase!r}; verdict {row.verdict} ({row.detail})")
        display(Image(filename=pictures[row.feature]))

# %% [markdown]
# ## Is the judge right?
#
# On the demo a feature is *truly* an error feature when at least 80% of its 20 strongest validation images show one and the
# same error, and that error is enriched among its test images. The published threshold rule (error ratio ≥ 0.95) stands
# beside the judge; it reads the labels, which the judge does not. Two causes were never named in the captions on which
# the encoder was trained: there the judge cannot have read the answer, so they are counted apart.

# %%
known = judge_figures.captioned(pd.read_csv(stage.input("01_embed") / "tables" / "01_encoder.csv")) if has_truth else {}
parts = []
for method, table in features.items():
    everyone = pd.concat([verdicts[method], judges.threshold(table)], ignore_index=True)
    parts.append(judge_figures.judge_lines(method, everyone, table, known))
scores = judge_figures.judges_table(parts, coders[coders["status"] != "ok"])
plots.table(stage, scores, "judges")
display(scores.round(2))

# %%
if has_truth and features:
    fig, frame = judge_figures.confusion(verdicts, features, main)
    plots.save(stage, fig, "confusion", frame)

# %%
if has_truth and features:
    fig, frame = judge_figures.scores(scores)
    plots.save(stage, fig, "judge_scores", frame)

# %%
own = scores[(scores["judge"] == main) & scores["f1"].notna()]
for row in own[own["captioned"] == "all"].itertuples():
    print(
        f"{row.method}: precision {row.precision:.2f}, recall {row.recall:.2f}, F1 {row.f1:.2f} (goal 0.80), kappa {row.kappa:.2f}."
    )
for part in ("captioned", "uncaptioned"):
    some = own[own["captioned"] == part]
    print(
        f"{part} causes: mean F1 {some['f1'].mean():.2f} over {len(some)} methods."
        if len(some)
        else f"{part} causes: none to score."
    )
if not has_truth:
    print(f"There is no truth to compare with (labels: {data.facts['labels']}), so the judge's word stands unchecked.")

# %% [markdown]
# ## Do the judges agree?
#
# Every judge against every other, on the features on which both have a verdict. Cohen's kappa takes out the agreement
# that chance alone would give; precision and recall take the reference for the truth.

# %%
everyone = {m: pd.concat([verdicts[m], judges.threshold(t)], ignore_index=True) for m, t in features.items()}
agreed = agreement.pairwise(everyone)
plots.table(stage, agreed, "agreement")
display(agreed.round(2))

# %%
for row in agreed.groupby(["judge", "reference"], sort=False).tail(1).itertuples():
    print(f"{row.judge} and {row.reference} agree on {row.agreement:.0%} of {row.n} features (kappa {row.kappa:.2f}).")

# %% [markdown]
# ## Do the explanations hold on images that nobody has seen?
#
# Of the test images, some on which a feature fires and as many on which it does not are mixed, and the model sorts them by
# the explanation alone. With the explanation of another feature it should do no better than chance: that is the control. As
# a second score it has to find the one image on which the feature does not fire, without any explanation.

# %%
if asks and score_features:
    from mtlib.coders.sparse_coder import SparseCoder

    folders = coders.set_index("method")["folder"]
    load = lambda m: SparseCoder.from_pretrained(stage.input("03_train") / folders[m])  # noqa: E731
    trials = scoring.held_out(jobs, judged.explanations, load, data, scored)
    outcomes = scoring.score(trials, judged.explanations, interview)
    tried = scoring.summary(outcomes, scored)
    plots.table(stage, tried, "scores")
    plots.table(stage, outcomes, "score_outcomes")
    display(tried.round(3))

# %%
if asks and score_features and len(tried):
    plots.save(stage, judge_figures.explanation_scores(tried), "explanations", tried)
    for row in tried.itertuples():
        between = f"[{row.low:.2f}, {row.high:.2f}]"
        print(
            f"{row.method}, {row.kind}: {row.accuracy:.2f} {between} over {row.n_features} features; chance {row.chance:.2f}."
        )
else:
    print("Not tried: no model was asked." if not asks else "Not tried: no explanation to score.")

# %% [markdown]
# ## Would the model have said the same?
#
# A verdict that turns when the labels are shown, or when an order is written into the images, is not about the images. Text
# inside an image cannot change the form of an answer here, but it can change what a model says: the share of verdicts
# that it turned is a limit on what a verdict is worth.

# %%
if asks and flip_check:
    flips = lmm.flip_check(jobs, judged, interview, flip_check, show_error_ratio)
    plots.table(stage, flips, "flips")
    display(flips.round(3))
    for row in flips.itertuples():
        print(
            f"{row.method}: {row.n_flipped} of {row.n} verdicts turned by {row.changed}; {row.n_lost} without a verdict."
        )
else:
    print("Not checked: flip_check = 0." if asks else "Not checked: no model was asked.")

# %%
if asks:
    totals = pd.DataFrame([interview.usage(endpoint)])
    plots.table(stage, totals, "usage")
    display(totals)
    for method in features:
        interview.export(stage.out / "explanations" / method / "answers.jsonl", method)
    asker.close()
    print(f"{asker.usage.calls} requests now, {asker.usage.replayed} answers replayed. {asker.stopped}")

# %% [markdown]
# ## The published records
#
# Written for every method and read back: what other tools will see.

# %%
for method, frame in verdicts.items():
    own, shown = frame[frame["judge"] == main], tops[method].query("split == 'val'").groupby("feature").size()
    shown = shown.clip(upper=n_images) if asks else shown
    named, ruled = judges.published(own, shown.to_dict())
    folder = stage.out / "explanations" / method
    records.write(folder / "feature_analysis.jsonl", named)
    records.write(folder / "error_analysis.jsonl", ruled)

# %%
for method in verdicts:
    folder = stage.out / "explanations" / method
    analysed = records.read(folder / "feature_analysis.jsonl", records.FEATURE_ANALYSIS)
    ruled = records.read(folder / "error_analysis.jsonl", records.ERROR_ANALYSIS)
    assert not analysed.set_aside and not ruled.set_aside
    n_error = sum(r["error_analysis"] != records.NO_ERROR for r in ruled.records)
    print(f"{method}: {len(analysed.records)} names, {len(ruled.records)} verdicts, {n_error} of them errors.")

# %% [markdown]
# Beside them the table of interpretations as published for features of CLIP's layers: what has a picture, the most active first.

# %%
pictured = {m: {int(p.stem) for p in (source / m / "collages").glob("*.jpg")} for m in features}
tabled = judges.interpretations(features, verdicts, tops, main, pictured)
plots.table(stage, tabled, "interpretations")
display(tabled.head(8).round(3))

# %% [markdown]
# ## Answer
#
# Every feature that fires on enough images has a name and, where there is something to judge, a verdict; on the demo the
# tables above say how far the verdicts can be believed. Limits: the keyless judge chooses among given phrases, and its text
# tower knows only errors that its captions named; a multimodal model can be led by what is written in an image, may have
# seen the images before, and answers differently after an update of its server. Next, notebook 07 puts all scores of all
# methods into one table.

# %%
stage.finish(judge=main, methods=list(verdicts), has_truth=has_truth)
