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
factors = [0.0, 0.5, 1.0, 2.0, 4.0]  # on a feature's activation: 0 removes it, 1 leaves it
n_images = 20  # test images per feature, those on which it fires most (at most the top_n of 05)
n_controls = 4  # other latents whose directions are pushed as far, as the control
seed = 0  # of the choice of controls

# %%
import matplotlib.pyplot as plt
from IPython.display import display

from mtlib.report import plots
from mtlib.report.steering import SteeringRun, ends, neighbours_figure, section, steering_figure
from mtlib.run.artifacts import Stage, write_text

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
# Each line is a mean over the same images. Dashed: other latents' directions, pushed as far. If the line of a feature leaves the
# dashed one, it is this feature that the model listens to, and not merely a push of that size.

# %%
if not reason:
    images = {int(f): run.images(f, n_images) for f in chosen["feature"]}
    table = run.steering.table(images, run.alive, factors, n_controls, seed)
    plots.save(stage, steering_figure(table, chosen), "factors", table)
    plt.show()

# %%
if not reason:
    found = ends(table, chosen)
    plots.table(stage, found, "ends")
    display(found.round(3))

# %%
lines = []
if not reason:
    kept = found["class_kept, removed"].mean(), found["class_kept, control"].mean()
    lines = [
        f"With the feature removed {kept[0]:.0%} of the images keep their zero-shot class; with a control {kept[1]:.0%}."
    ]
    for column, what in (
        ("implausible", "the probability of implausible"),
        ("error_by_text", "the share called an error by text"),
    ):
        if f"{column}, removed" in found:
            means = [found[f"{column}, {name}"].mean() for name in ("as it is", "removed", "control")]
            lines.append(
                f"On average {what} is {means[0]:.2f} as it is, {means[1]:.2f} with the feature removed, {means[2]:.2f} with a control."
            )
    print("\n".join(lines))

# %% [markdown]
# ## Nearest images
#
# What the change means, in pictures: the images nearest to the changed embedding, among train and val images.

# %%
if not reason and run.steering.data.pictures and run.steering.data.image_root is not None:
    turned = found.set_index("feature")["neighbours_kept, removed"]
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
write_text(stage.out / "README.md", text if reason else section(run, table, chosen, " ".join(lines)))
stage.finish(method="" if reason else run.method, reason=reason)
