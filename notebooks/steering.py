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
# # Steering · What does the model say when one feature is turned down or up?
#
# A feature that goes along with a class or an error need not carry it. Here some features of an autoencoder are scaled in the
# images on which they fire most, everything else of the image (the coder's error, too) stays as it is, and the model is asked
# again: the zero-shot class by the text tower, the verdict on plausibility, and which images are nearest. Where `x` is an inner
# layer, this happens in the forward pass, and the later layers go on from the changed activation.
#
# *Needs* a run up to 06 with an autoencoder and classes for zero-shot. *Makes* the tables and figures below. *Takes* seconds for
# coders of the final embedding, about a minute for an inner layer of the demo's encoder.

# %% tags=["parameters"] needs="autoencoders zero_shot" settings="mtlib.features.choice:SteeringSettings"
run_dir = "runs/demo"  # folder of the run to look at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
method = ""  # the coder to look at; empty for the first one
features = []  # numbers of the features to steer; empty: see named
named = ""  # steer features whose name holds this text; empty: those of the causes where they are known, else the most active
n_features = 10  # strongest features shown
factors = [-4.0, -1.0, 0.0, 1.0, 4.0]  # on a feature's activation: 0 removes it, 1 leaves it, below 0 turns it round
n_images = 20  # test images per feature, those on which it fires most (at most the top_n of 04)
n_controls = 3  # draws of other latents that are put in their place, as the control
seed = 0  # of the choice of controls

# %%
import pandas as pd
import seaborn as sns

from mtlib import plots
from mtlib.embed import store
from mtlib.embed.encoders import Encoder
from mtlib.features import choice
from mtlib.judge.text_space import text_verdict
from mtlib.learn.classifier import Classifier
from mtlib.measure import steering
from mtlib.measure.codes import first_seeds, open_subjects, subject_named
from mtlib.measure.zero_shot import zero_shot_task
from mtlib.run.stage import Stage

plots.use_style()
stage = Stage("steering", globals())
settings, data = stage.settings(choice.SteeringSettings), store.open_data(stage)
subjects = [s for s in first_seeds(open_subjects(stage.input("03_train"))[0]) if s.target == "x"]
chosen = subject_named(subjects, method)
head, causes, groups = None, pd.DataFrame(), {}

# %%
folder = stage.input("05_features") / "features" / chosen.method
table, top = (pd.read_parquet(folder / f"{name}.parquet") for name in ("features", "top_images"))
verdicts = pd.read_parquet(stage.input("06_interpret") / "explanations" / chosen.method / "verdicts.parquet")
named_first = verdicts.drop_duplicates("feature")[["feature", "phrase"]]
table = table.merge(named_first, how="left").fillna({"phrase": ""})

# %% needs="causes"
causes = stage.read("truth", "04_causes").query("method == @chosen.method")
groups = choice.groups_of_causes(table, causes)

# %% needs="head labels"
head = Classifier.load(stage.input("02_classify") / "classifier")

# %%
encoder = Encoder.of(data.facts) if data.facts["encoder"]["name"] else None
task, _ = zero_shot_task(data, lambda: encoder)
steered = steering.Steering(data, encoder, chosen.coder, task, head, text_verdict(data))

# %% [markdown]
# ## Which features

# %%
wanted = choice.to_steer(table, settings, causes)
stage.table(wanted, "chosen", "The features that are scaled.", {"feature": "feature", "why": "why", "phrase": "name"})

# %% [markdown]
# ## Turned down, turned up
#
# Each line is a mean over the same images. Grey: other latents in its place, pushed as far. Where the line of a feature leaves
# the grey one, it is this feature that the model listens to, and not merely a push of that size. A cause may be shared out over
# several features; where the truth is known, all that stand for it are scaled together, too (*group*).

# %%
test = top[top["split"] == "test"].sort_values("rank")
images = {int(f): test.loc[test["feature"] == f, "row"].to_numpy()[:n_images] for f in wanted["feature"]}
alive = table.loc[table["density"] > 0, "feature"].to_numpy()
moved = steered.table(images, alive, factors, n_controls, seed, groups)
long = moved.melt(["feature", "direction", "factor"], list(steering.READINGS), "reading").dropna()
look = {"x": "factor", "y": "value", "hue": "direction", "style": "direction", "row": "reading", "col": "feature"}
look |= {"palette": {"feature": "C0", "control": "0.6", "group": "C1", "group control": "0.3"}, "height": 1.9}
look |= {"col_order": wanted["feature"].tolist(), "facet_kws": {"sharey": "row", "margin_titles": True}}
grid = plots.facets(sns.relplot, long, kind="line", markers=True, **look)
caption = "What the model says when features are removed (0), turned round (below 0) or turned up; grey: controls."
stage.figure(grid.figure, "factors", moved, caption)

# %%
ends = steering.ends(moved, wanted)
stage.table(ends, "ends")
headings = {"reading": "reading", "scaled": "scaled", "features": "features", "low": f"factor {min(factors):g}"}
headings |= {"0": "0", "1": "1", "high": f"factor {max(factors):g}"}
caption = "Means over the features; control: as many other latents in their place, the step as long."
stage.table(steering.summary(ends), "summary", caption, headings)

# %% [markdown] needs="pictures"
# ## Nearest images
#
# What the change means, in pictures: the images nearest to the changed embedding, among train and val images, for the feature
# without which the fewest of them stay.

# %% needs="pictures"
feature = int(ends[ends["direction"] == "feature"].set_index("feature")["neighbours_kept_0"].idxmin())
row = images[feature][:1]
found = steered.embeddings(row, [feature], factors)
lines = [[data.thumbnail(int(at)) for at in (*row, *steered.neighbours(e, row, 5)[0])] for e in found]
fig = plots.image_grid(lines, names=[f"factor {f:g}" for f in factors], heads=["image", "nearest"])
own = moved[moved["feature"] == feature]
stage.figure(fig, "nearest", own, "The nearest images as one feature is turned down and up.")

# %% [markdown]
# ## Answer
#
# The table says which features the model listens to. Limits: the images are those on which a feature is strongest; one that is
# shared out over several features is not gone when one of them is; and at large factors an activation leaves what the later
# layers have ever seen.

# %%
stage.finish(method=chosen.method)
