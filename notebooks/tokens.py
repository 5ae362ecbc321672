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

# %% tags=["parameters"]
run_dir = "runs/alexnet"  # folder of the run to look at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
method = ""  # the coder to look at; empty for the first one
image = -1  # number of an image, of all that were embedded; -1: the first test image
row = -1  # the token's place on the grid; -1: where most is going on
column = -1  # its column; needed with row
n_features = 10  # strongest features shown
n_spliced = 200  # test images on which the vision model is tried with the coder inside

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

from mtlib import plots
from mtlib.features.token_map import curves, token_figure, token_map
from mtlib.report.tokens import TokenRun, section
from mtlib.run.artifacts import write_text
from mtlib.run.stage import Stage

plots.use_style()
params = dict(method=method, image=image, row=row, column=column, n_features=n_features, n_spliced=n_spliced)
stage = Stage("tokens", run_dir, stage_dir, params=params)
run = TokenRun.of_stage(stage, method)
facts = run.data.facts
print(
    f"{len(run.data.x)} tokens of {facts['d_in']}, {run.data.tokens} per image, after {facts['layer']}; coder: {run.method}."
)

# %% [markdown]
# ## How the coders learned
#
# Lines are means over the last training steps, points are exact on the validation images. The published coder is driven by its
# penalty alone: how many features a token ends up with is an outcome, not a choice. A coder that is steered to a number of
# features can be compared with others of the same number.

# %%
fig, frame = curves(run.histories, plots.run_styles(stage.input("03_train")))
plots.save(stage, fig, "curves", frame)
plt.show()

# %%
last = frame[frame["split"] == "val"].groupby("method", sort=False).last()
print("At the end, on validation tokens:")
display(last[["step", "fvu", "l0"]].round(4))

# %% [markdown]
# ## Does the vision model still see?
#
# A small FVU may still cost the decision. So the reconstruction takes the place of every token in the middle of the forward
# pass, and the later blocks go on from there. The control gives them the same mean token everywhere.

# %%
seen = run.spliced(n_spliced)
if seen:
    plots.table(stage, pd.DataFrame([{"method": run.method} | seen]), "spliced")
    print(
        f"{seen['n']} test images: accuracy {seen['accuracy']:.1%}; with the coder inside {seen['accuracy_spliced']:.1%}",
        end="",
    )
    print(f" ({seen['agreement']:.1%} the same decision); with a constant token {seen['accuracy_constant']:.1%}.")
else:
    print("No vision model of this run, or no labelled test image: nothing to try.")

# %% [markdown]
# ## The strongest features of one token
#
# Top left the image, with the token framed (white where no picture is to be shown). Then its strongest features: the colour of a place is how strongly the feature fires
# *there*. A feature that lights up the framed place alone is about what stands there; one that lights up everywhere is about
# the whole image (attention has mixed the tokens), or about nothing.

# %%
chosen = int(run.images("test")[0]) if image < 0 else image
found = token_map(run.coder, run.data, chosen, None if row < 0 else (row, column), n_features)
display(found.table.round(3))

# %%
fig = token_figure(found, run.shown(chosen), run.corners)
plots.save(stage, fig, "features", found.table)
plt.show()

# %%
share = found.table["fires_on"]
print(
    f"Image {chosen} ({run.data.manifest['class_name'].iloc[found.row]}), token {found.place}: {len(share)} features shown,"
)
print(f"which fire on {share.min():.0%} to {share.max():.0%} of the image's places.")

# %% [markdown]
# ## Answer
#
# The table says what the token holds in the coder's terms, the maps whether that belongs to its place. Limits: one image is an
# anecdote (notebook 05 has each feature's strongest images, 06 its name), and a map shows where a feature fires, not what
# it does: for that the stream must be changed and the decision watched.

# %%
write_text(stage.out / "README.md", section(run.method, last, seen, found))
stage.finish(method=run.method, image=chosen, place=list(found.place))
