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
# The features of a finished run, their images, names and verdicts; click an image, or give one of yours, to see its features.

# %%
from mtlib.report.viewer import FeatureViewer

FeatureViewer()

# %% [markdown]
# **Reading it.** The list marks each feature ✕ (called a physical error), ✓ (not an error) or – (not judged), with the
# value it is sorted by, and how many copies say the same (×2). In the list, the arrow keys go from feature to feature. Under each
# image stands its activation; the line under the image is red for images labelled implausible and green for plausible ones. The
# *val* images are those that gave the feature its name; the *test* images are held out: a name that only fits the first is not to
# be trusted. The error ratio counts test images only. Of an image of yours only the features are named that the run's own
# labels bear out.
#
# *Needs* a run up to 05 (names and verdicts: 06). *Makes* nothing: it only reads. `./run_all.sh viewer` opens it as it is here; in
# JupyterLab, run all cells.
