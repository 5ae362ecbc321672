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
# # Tokens · What does one token of a vision model hold?
#
# The AlexNet-Transformer of notebook 02 reads an image as 36 tokens on a 6 x 6 grid, and a sparse coder rewrites each token as a few
# features. Here: how the coder learned (MSE, FVU and L0, as published), whether the vision model still works when it is given
# the reconstruction, and the strongest features of one token, with the places where else in the image they fire.
#
# *Needs* a run of the profile alexnet up to 03, which has this notebook as its last stage (the maps also work with any run
# whose `x` are patches of a `layer`). *Makes* the tables and figures below. *Takes* about a minute.

# %% tags=["parameters"] needs="coders images"
run_dir = "runs/alexnet"  # folder of the run to look at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
method = ""  # the coder to look at; empty for the first one
image = -1  # number of an image, of all that were embedded; -1: the first test image
row = -1  # the token's place on the grid; -1: where most is going on
column = -1  # its column; needed with row
n_features = 10  # strongest features shown
n_spliced = 200  # test images on which the vision model is tried with the coder inside

# %%
import pandas as pd
import seaborn as sns

from mtlib import plots
from mtlib.embed import store
from mtlib.features import token_maps
from mtlib.learn.train import read_history
from mtlib.learn.vision import load_vision
from mtlib.measure.codes import first_seeds, open_subjects, subject_named
from mtlib.run.stage import Stage

plots.use_style()
stage = Stage("tokens", globals())
data, train = store.open_data(stage), stage.input("03_train")
subjects = first_seeds(open_subjects(train)[0])
chosen, model = subject_named(subjects, method), None

# %% needs="vision"
model = load_vision(stage.input("vision_model") / "vision")

# %% [markdown] needs="trained"
# ## How the coders learned
#
# Lines are means over the last training steps, points are exact on the validation images. The published coder is driven by its
# penalty alone: how many features a token ends up with is an outcome, not a choice. A coder that is steered to a number of
# features can be compared with others of the same number.

# %% needs="trained"
parts = [read_history(train / "coders" / f"{s.method}-s{s.seed}").assign(method=s.method) for s in subjects]
history = pd.concat(parts, ignore_index=True).rename(columns={"reconstruction": "mse"})
history = history[["method", "step", "split", "mse", "fvu", "l0"]]
long = history.melt(["method", "step", "split"], var_name="of").dropna()
look = {"x": "step", "y": "value", "col": "of", "hue": "method", "style": "split", "facet_kws": {"sharey": False}}
grid = plots.facets(sns.relplot, long, kind="line", markers=True, errorbar=None, height=3, **look).set(yscale="log")
caption = "MSE, FVU and L0 per token while the coders learn, on train and validation images."
stage.figure(grid.figure, "curves", history, caption)

# %% needs="trained"
last = history[history["split"] == "val"].groupby("method", sort=False).last().reset_index()
headings = {"method": "method", "step": "steps", "fvu": "FVU", "l0": "L0 per token"}
stage.table(last, "last", "The coders on validation tokens when training ends.", headings)

# %% [markdown] needs="vision"
# ## Does the vision model still see?
#
# A small FVU may still cost the decision. So the reconstruction takes the place of every token in the middle of the forward
# pass, and the later blocks go on from there. The control gives them the same mean token everywhere.

# %% needs="vision"
seen = token_maps.spliced(model, chosen.coder, data, n_spliced)
seen.insert(0, "method", chosen.method)
headings = {"method": "coder", "n": "test images", "accuracy": "accuracy", "accuracy_spliced": "with the coder inside"}
headings |= {"agreement": "same decision", "accuracy_constant": "with one constant token"}
stage.table(seen, "spliced", "The vision model with the coder's reconstruction in place of every token.", headings)

# %% [markdown]
# ## The strongest features of one token
#
# Top left the image, with the token framed (white where no picture is to be shown). Then its strongest features: the colour of a
# place is how strongly the feature fires *there*. A feature that lights up the framed place alone is about what stands there; one
# that lights up everywhere is about the whole image (attention has mixed the tokens), or about nothing.

# %%
shown = int(data.rows("test")[0] // data.tokens) if image < 0 else image
found = token_maps.token_map(chosen.coder, data, shown, None if row < 0 else (row, column), n_features)
fig = token_maps.token_figure(found, token_maps.token_picture(data, shown, model), model)
stage.figure(
    fig, "features", found.table, "The strongest features of one token, and where else in its image they fire."
)
found.table.round(3)

# %% [markdown]
# ## Answer
#
# The table says what the token holds in the coder's terms, the maps whether that belongs to its place. Limits: one image is an
# anecdote (notebook 05 has each feature's strongest images, 06 its name), and a map shows where a feature fires, not what
# it does: for that the stream must be changed and the decision watched.

# %%
stage.finish(method=chosen.method, image=shown, place=list(found.place))
