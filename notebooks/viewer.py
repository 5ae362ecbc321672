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
# # Viewer · What does each feature fire on?
#
# Browse the features of a finished run: choose a method, sort and filter its features, see the images on which each one
# fires most, how it is named and judged, and which features are like it. Label an image of your own.
#
# *Needs* a run up to 05 (names and verdicts: 06). *Makes* nothing: it only reads. Open it in JupyterLab and run all cells;
# widgets need a live kernel.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of the run to look at
method = ""  # the method to start with; empty for the first one

# %%
from mtlib.report.viewer import FeatureViewer

viewer = FeatureViewer(run_dir, method)

# %% [markdown]
# **Reading it.** The list marks each feature ✕ (called a physical error), ✓ (not an error) or – (not judged), with the
# value it is sorted by. Under each image stands its activation; the line under the image is red for images labelled
# implausible and green for plausible ones. The *val* images are those that gave the feature its name; the *test* images are
# held out: a name that only fits the first is not to be trusted. The error ratio counts test images only.

# %%
viewer
