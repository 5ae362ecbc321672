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
# *Needs* a run up to 06 with an autoencoder. *Makes* the tables and figures below. *Takes* seconds for coders of the final
# embedding, about a minute for an inner layer of the demo's encoder.

# %% tags=["parameters"]
run_dir = "runs/demo"  # folder of the run to look at
stage_dir = ""  # filled in by run_all.sh; empty in Jupyter
method = ""  # the coder to look at; empty for the first one
features = []  # numbers of the features to steer; empty: see named
named = ""  # steer features whose name holds this text; empty: those of the causes where they are known, else the most active
n_features = 10  # strongest features shown
factors = [-4.0, -1.0, 0.0, 1.0, 4.0]  # on a feature's activation: 0 removes it, 1 leaves it, below 0 turns it round
n_images = 20  # test images per feature, those on which it fires most (at most the top_n of 05)
n_controls = 3  # draws of other latents that are put in their place, as the control
seed = 0  # of the choice of controls

# %%
import matplotlib.pyplot as plt
from IPython.display import display

from mtlib import plots
from mtlib.report.steering import SteeringRun, ends, neighbours_figure, section, steering_figure, summary
from mtlib.run.artifacts import write_text
from mtlib.run.stage import Stage

plots.use_style()
if not {0.0, 1.0} <= set(factors):
    raise ValueError(f"factors = {factors}: 0 and 1 must be among them, to compare with")
params = dict(method=method, features=features, named=named, n_features=n_features, factors=factors)
params |= dict(n_images=n_images, n_controls=n_controls, seed=seed)
stage = Stage("steering", run_dir, stage_dir, params=params)
run = SteeringRun.open(stage, method)
reason = run if isinstance(run, str) else ""
print(f"Nothing to steer: {reason}." if reason else f"{run.method}; classes: {run.steering.task.what}.")

# %% [markdown]
# ## Which features

# %%
if not reason:
    chosen = run.choose(features, named, n_features)
    plots.table(stage, chosen, "chosen")
    display(chosen.round(4))

# %% [markdown]
# ## Turned down, turned up
#
# Each line is a mean over the same images. Grey: other latents in its place, pushed as far. Where the line of a feature leaves
# the grey one, it is this feature that the model listens to, and not merely a push of that size. A cause may be shared out over
# several features; where the truth is known, all that stand for it are scaled together, too (*group*).

# %%
if not reason:
    images = {int(f): run.images(f, n_images) for f in chosen["feature"]}
    table = run.steering.table(images, run.alive, factors, n_controls, seed, run.groups)
    plots.save(stage, steering_figure(table, chosen), "factors", table)
    plt.show()

# %%
if not reason:
    found = ends(table, chosen)
    plots.table(stage, found, "ends")
    display(summary(found).round(3))

# %%
for row in found.itertuples() if not reason else ():
    if row.direction in ("feature", "group"):
        also = f"; logit {row.logit_1:.1f} to {row.logit_0:.1f} and {row.logit_low:.1f}" if "logit_1" in found else ""
        text = (
            f"; called an error by text {row.error_by_text_1:.0%} to {row.error_by_text_low:.0%}"
            if "margin_1" in found
            else ""
        )
        kept = f"class kept {row.class_kept_0:.0%} at 0, {row.class_kept_low:.0%} at {min(factors):g}"
        print(f"{row.feature} ({row.why}), {row.direction}: {kept}{also}{text}.")

# %% [markdown]
# ## Nearest images
#
# What the change means, in pictures: the images nearest to the changed embedding, among train and val images.

# %%
if not reason and run.steering.data.pictures and run.steering.data.image_root is not None:
    turned = found[found["direction"] == "feature"].set_index("feature")["neighbours_kept_0"]
    shown = int(turned.idxmin())
    fig = neighbours_figure(run, shown, int(images[shown][0]), factors)
    plots.save(stage, fig, "nearest", table[table["feature"] == shown])
    plt.show()
    print(f"Feature {shown}: without it {turned[shown]:.0%} of the nearest images stay.")

# %% [markdown]
# ## Answer
#
# The table says which features the model listens to. Limits: the images are those on which a feature is strongest; one that is
# shared out over several features is not gone when one of them is; and at large factors an activation leaves what the later
# layers have ever seen.

# %%
text = f"## What does a feature do to the verdict?\n\nNothing was steered: {reason}.\n"
write_text(stage.out / "README.md", text if reason else section(run, table, chosen))
stage.finish(method="" if reason else run.method, reason=reason)
