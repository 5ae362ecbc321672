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
# judge used here needs no key and no labels: it compares the images with phrases through the encoder's text tower. On
# the demo the truth of every image is known, so the judge is judged too.
#
# *Needs* the embeddings and phrases of 01 and the features of 05. *Makes* `explanations/<method>/`: verdicts of all
# judges and the published records (`feature_analysis.jsonl`, `error_analysis.jsonl`). *Takes* about 20 seconds on two
# cores for the demo.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of this run
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
judge = "keyless"  # who names features and rules on them
max_features = 0  # judge only this many features per method, the most surely tied to errors first; 0: all
keyless_share = 0.8  # a feature is an error when this share of its top images looks like one family's error
keyless_min_images = 4  # features with fewer top images are not judged

# %%
import pandas as pd
from IPython.display import Image, display

from mtlib.embed import store
from mtlib.explain import judge_figures, judges, records
from mtlib.features.methods import interpreted
from mtlib.report import plots
from mtlib.run.artifacts import Stage

plots.use_style()
if judge != "keyless" or max_features < 0:
    raise ValueError(f"judge = {judge!r} (only 'keyless' so far), max_features = {max_features} (>= 0)")
config = judges.KeylessConfig(min_images=keyless_min_images, share=keyless_share)
params = dict(judge=judge, max_features=max_features, share=keyless_share, min_images=keyless_min_images)
stage = Stage("06_interpret", run_dir, stage_dir, params=params)

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
verdicts = {}
for method, table in features.items():
    said = [judges.keyless(table, tops[method], data, config)]
    said[0] = judges.only_first(said[0], table, max_features)
    if has_truth:
        said.append(judges.truth(table))
    verdicts[method] = pd.concat(said, ignore_index=True)
    folder = stage.out / "explanations" / method
    folder.mkdir(parents=True, exist_ok=True)
    verdicts[method].to_parquet(folder / "verdicts.parquet", index=False)

# %%
counts = judge_figures.verdict_counts(verdicts)
plots.table(stage, counts, "verdicts")
display(counts)
assert counts.empty or (counts[list(judges.VERDICTS)].sum(axis=1) == counts["n_latents"]).all()
for row in counts[counts["judge"] == judge].itertuples():
    print(f"{row.method}: {row.error + row.no_error} of {row.n_latents} features judged, {row.error} called an error.")
for row in coders[coders["status"] != "ok"].itertuples():
    print(f"{row.method} has no features to judge: {row.reason}.")

# %%
for method, frame in verdicts.items():
    reasons = frame.loc[(frame["judge"] == judge) & (frame["verdict"] == "skipped"), "detail"].value_counts()
    print(f"{method}: not judged: {reasons.head(3).to_dict() if len(reasons) else 'none'}")

# %% [markdown]
# ## Names and verdicts
#
# The features most surely tied to implausible images, with what the judge says of them. The last two columns come from
# the labels and from the truth; the judge has seen neither.

# %%
for method, table in features.items():
    joined = judges.beside(table, verdicts[method], judge)
    print(method)
    display(joined.head(8).round(2))

# %%
named = pd.concat(
    [f[(f["judge"] == judge) & (f["phrase"] != "")].assign(method=m) for m, f in verdicts.items()] or [pd.DataFrame()]
)
if len(named):
    common = named.groupby("method")["phrase"].agg(lambda p: p.value_counts().index[0])
    for method, part in named.groupby("method", sort=False):
        print(
            f"{method}: {part['phrase'].nunique()} different names for {len(part)} features; most frequent: {common[method]!r}."
        )

# %%
for method in list(verdicts)[:2]:
    joined = judges.beside(features[method], verdicts[method], judge)
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
    fig, frame = judge_figures.confusion(verdicts, features, judge)
    plots.save(stage, fig, "confusion", frame)

# %%
if has_truth and features:
    fig, frame = judge_figures.scores(scores)
    plots.save(stage, fig, "judge_scores", frame)

# %%
own = scores[(scores["judge"] == judge) & scores["f1"].notna()]
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
# ## The published records
#
# Written for every method and read back: what other tools will see.

# %%
for method, frame in verdicts.items():
    own, n_images = frame[frame["judge"] == judge], tops[method].query("split == 'val'").groupby("feature").size()
    folder = stage.out / "explanations" / method
    records.write(folder / "feature_analysis.jsonl", records.feature_analysis(own, n_images.to_dict()))
    records.write(folder / "error_analysis.jsonl", records.error_analysis(own, n_images.to_dict()))

# %%
for method in verdicts:
    folder = stage.out / "explanations" / method
    analysed = records.read(folder / "feature_analysis.jsonl", records.FEATURE_ANALYSIS)
    ruled = records.read(folder / "error_analysis.jsonl", records.ERROR_ANALYSIS)
    assert not analysed.set_aside and not ruled.set_aside
    n_error = sum(r["error_analysis"] != records.NO_ERROR for r in ruled.records)
    print(f"{method}: {len(analysed.records)} names, {len(ruled.records)} verdicts, {n_error} of them errors.")

# %% [markdown]
# ## Answer
#
# Every feature that fires on enough images has a name and, where there is something to judge, a verdict; on the demo the
# tables above say how far the verdicts can be believed. Limits: the judge chooses among given phrases, and its text tower
# knows only errors that its captions named. Next, notebook 07 puts all scores of all methods into one table.

# %%
stage.finish(judge=judge, methods=list(verdicts), has_truth=has_truth)
