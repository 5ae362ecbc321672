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
# # Concepts · Do the coders hold elsewhere, what are their latents called, and what are the names good for?
#
# A sparse autoencoder of CLIP embeddings is trained on images of one data set. CLIP puts other images and texts in the same space,
# so here its codes are measured on both. Then each latent is named after the phrase that its own direction points to, two seeds
# are compared latent by latent, images are searched by their concepts, and a classifier is asked whether attributes that
# should not matter sway it.
#
# *Needs* a run up to 06 whose `x` are final embeddings (coders of an inner layer live in another space). *Makes* the tables and
# figures `concepts_...` and a section of the report. *Takes* about a minute for the demo's scenes.

# %% tags=["parameters"]
run_dir = "runs/msae"  # folder of the run to look at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
seed = 0  # of samples, shuffled names and random directions
second_data = (
    ""  # another image set: a folder of images, or embeddings (.npy, .npz, LMDB); empty: those of generators, if any
)
second_text = ""  # text embeddings in the same space (.npy, .npz, LMDB), e.g. captions; empty: the vocabulary's phrases
concept_method = "msae_rw"  # whose latents search and bias are shown with; where it is missing, the first one
name_threshold = 0.0  # cosine from which a name counts; 0.0: what 1 in 100 random directions exceeds
n_neighbours = 5  # images found for each query

# %%
import pandas as pd
from IPython.display import display

from mtlib import plots
from mtlib.embed import store
from mtlib.features import bias, concepts, elsewhere
from mtlib.features.methods import interpreted
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import open_subjects
from mtlib.measure.monosemanticity import image_classes
from mtlib.measure.similarity import align
from mtlib.report import concepts as report
from mtlib.run.artifacts import write_text
from mtlib.run.stage import Stage

plots.use_style()
params = dict(seed=seed, second_data=second_data, second_text=second_text, concept_method=concept_method)
params |= dict(name_threshold=name_threshold, n_neighbours=n_neighbours)
stage = Stage("concepts", run_dir, stage_dir, params=params)
why, what = {}, {"test": "the run's own test images"}

# %%
data = store.open_data(stage)
if "layer" in data.facts:
    raise ValueError("concepts: x holds a layer's activations; name and compare final embeddings (layer = '')")
everyone = [s for s in open_subjects(stage.input("03_train"))[0] if s.target == "x"]
first = set(interpreted(stage.input("03_train"))[["method", "seed"]].itertuples(index=False, name=None))
subjects = [s for s in everyone if (s.method, s.seed) in first]
if not subjects:
    raise ValueError("concepts: the run has no autoencoder of x")
styles = plots.run_styles(stage.input("03_train"))  # a method looks the same in every figure of the run
chosen = next((s for s in subjects if s.method == concept_method), subjects[0])
print(f"{len(subjects)} methods, {len(everyone)} coders; search and bias are shown with {chosen.method}.")

# %% [markdown]
# ## On other data
#
# The coder keeps the centring, scaling and thresholds of its train images; nothing is fitted again. The second image set shows
# what a change of the images costs, the texts what a change of modality costs. Images and texts of a CLIP lie in two clouds
# apart, so a part of the latter is only that gap: *text, centred* is the same texts moved by one vector onto the images' mean.

# %%
made = stage.out / "shards" / "second"
second = elsewhere.second_images(data, second_data, stage.root, made)
text = elsewhere.texts(data, second_text, stage.root, made)
sets = [second] if second else []
sets += [text, elsewhere.centred(data, text)] if text else []
what |= {s.name: s.what for s in sets}
why |= {} if second else {"second": "There is no second image set (`second_data`)."}
print(*[f"{name}: {said}" for name, said in what.items()], sep="\n")

# %%
there = elsewhere.evaluate_there(data, subjects, sets, seed)
tables = stage.input("04_evaluate") / "tables"
metrics = elsewhere.summary(there, pd.read_csv(tables / "04_metrics.csv"))
plots.table(stage, metrics, "metrics")
display(metrics.dropna(axis=1, how="all").round(3))

# %%
for name, part in metrics.groupby("data", sort=False):
    best = part.loc[part["fvu"].idxmin()]
    print(f"{name}: {best.method} leaves least, FVU {best.fvu:.3f} at L0 {best.l0:.0f}; worst {part['fvu'].max():.2f}.")

# %% [markdown]
# ## Progressive recovery, everywhere
#
# Only the 16, 32, 64 ... largest codes of each row are kept. A Matryoshka coder should degrade gently, also where it was not trained.

# %%
recovery = elsewhere.progressive(there, pd.read_csv(tables / "04_progressive.csv"))
if len(recovery):
    plots.save(stage, report.progressive(recovery, styles), "progressive", recovery)

# %% [markdown]
# ## Names
#
# A latent's name is the phrase nearest to its decoder row (or encoder column): the way of *Discover-then-Name*, which MSAE follows.
# Latents are directions about a mean, so the texts are taken about theirs: what all texts share would name everything. Some phrase
# is always nearest, and what cosine is high depends on the CLIP; so a name counts only from the cosine that one in a hundred
# random directions exceeds. Whether names *fit* is then tried on test images: those on which a latent is strongest should lie
# nearer to its name (rank above 0.5) than to another latent's.

# %%
named = {}
if len(data.vocabulary):
    for s, by in ((s, by) for s in subjects for by in concepts.BY):
        named[s.method, by] = concepts.name_latents(s.coder, data, by, name_threshold, seed)
else:
    why["naming"] = "There is no vocabulary in the space of these embeddings."
naming = concepts.naming_summary(named)
plots.table(stage, naming, "names")
display(naming.round(3))

# %%
if named:
    cosines = concepts.cosine_quantiles(named)
    plots.save(stage, report.names(cosines, styles), "naming", cosines)
    own = named[chosen.method, "decoder"]
    plots.table(stage, own.valid, "latents")
    print(f"{chosen.method}: {len(own.valid)} of {len(own.table)} latents named from cosine {own.threshold:.2f}:")
    display(own.valid.head(12).round(3))

# %%
for row in naming[naming["by"] == "decoder"].itertuples() if named else ():
    fit = f"their images rank {row.nearer:.2f} by nearness to the name, {row.nearer_other:.2f} to another"
    print(f"{row.method}: {row.n_named} latents with {row.n_names} names; {fit}.")

# %% [markdown]
# ## Do two seeds learn the same latents?
#
# Latents are matched one to one so that the sum of cosines is largest (Hungarian), by what they write (decoder) and by what they
# read (encoder). A latent is *the same* in both seeds when the two matchings agree on its partner and both cosines reach 0.7.

# %%
aligned = align(everyone, seed=seed)
if len(aligned):
    plots.save(stage, report.alignment(aligned), "alignment", aligned)
    for method, part in aligned.groupby("method", sort=False):
        print(f"{method}: decoder {part.decoder.mean():.2f} (random rows {part.chance.mean():.2f}), ", end="")
        print(f"encoder {part.encoder.mean():.2f}; {part.both_shared.mean():.0%} of latents are the same.")
else:
    why["alignment"] = "Each method was trained with one seed, so there is nothing to align."
    print(why["alignment"])

# %% [markdown]
# ## Search by concepts
#
# Every test image is a query; its neighbours by codes stand beside those by embeddings (cosine in both). What codes add is the
# reason: the concepts that query and neighbour share.

# %%
found = {s.method: concepts.search(s.coder, data, n_neighbours, seed=seed) for s in subjects}
classes, _ = image_classes(data)
quality = pd.DataFrame([{"method": m} | concepts.search_quality(f, classes) for m, f in found.items()])
plots.table(stage, quality, "search")
display(quality.round(3))

# %%
if named:
    shown = concepts.shown_queries(found[chosen.method], data, named[chosen.method, "decoder"], seed=seed)
    plots.table(stage, shown, "neighbours")
    display(shown[shown["by"] == "codes"].groupby("query").head(2)[["query_is", "what", "shared"]])
    if data.pictures and data.image_root is not None:
        plots.save(stage, report.neighbours(data, shown), "neighbours", shown)

# %% [markdown]
# ## Bias: does an attribute that should not matter sway the classifier?
#
# Attributes are columns of the table of images (gender, age ... of CelebA), or the nuisances of the rendered scenes. First: are
# decisions wrong more often on images with an attribute? Then the latent that tells these images best is removed and turned up:
# if the classifier leans on it, its decisions turn, more than for a random direction of the same length.

# %%
table = bias.attributes(data)
if reason := bias.why_not(data, table):
    why["bias"] = f"Skipped: {reason}."
    print(why["bias"])
biased = pd.DataFrame() if reason else bias.disparities(data, table)
if len(biased):
    plots.save(stage, report.disparities(biased), "bias", biased)
    apart = biased[(biased["low"] > 0) | (biased["high"] < 0)]
    print(f"{len(apart)} of {len(biased)} values differ, where 5 in 100 would by chance.")

# %%
if not reason:
    classifier = Classifier.load(stage.input("02_classify") / "classifier")
    swayed = bias.concepts(data, table, chosen.coder, classifier, seed)
    if len(swayed) and named:
        swayed["phrase"] = swayed["feature"].map(named[chosen.method, "decoder"].table["phrase"])
    if len(swayed):
        plots.save(stage, report.flips(swayed), "flips", swayed)
        display(swayed.sort_values("flipped", ascending=False).head(8).round(3))

# %%
if not reason and len(swayed):
    for scale, part in swayed.groupby("scale"):
        both = f"{part.flipped.mean():.1%} of decisions turn, {part.flipped_control.mean():.1%} by a random direction"
        print(f"concept x {scale:g}: {both} (mean over {len(part)} values of attributes).")

# %% [markdown]
# ## Answer
#
# The tables say how much of other images and of texts the codes still hold, how many latents have a name that fits, and how many a
# second seed would find again. Limits: a name is one of the given phrases; a neighbour by codes is explained, not necessarily
# better; a difference in wrong decisions may have other causes than the attribute.

# %%
write_text(stage.out / "README.md", report.section(what, metrics, naming, aligned, quality, biased, why))
stage.finish(method=chosen.method, data=list(what), n_named=int(naming["n_named"].sum()) if len(naming) else 0)
