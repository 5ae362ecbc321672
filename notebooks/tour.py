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
# # Tour · A transcoder in thirty lines, by hand
#
# A classifier looks at the embedding `x` of an image and decides, by a hidden layer `y`, whether the picture can be real.
# Which *single* thing did it see: a sixth finger, a floating cup? A sparse **transcoder** answers that. It reads `x`, lets at
# most `k` of its many features fire, and has to predict `y` from those few. What fires often stands for one thing.
#
# Here it is built from nothing but matrix products, trained, and asked for one feature that stands for an error. Then the package
# does the same, and the two are compared.
#
# *Needs* a finished run (`./run_all.sh`). *Takes* about half a minute. It is no stage of a run: change anything.

# %% tags=["parameters"]
run_dir = "runs/demo"  # a finished run with a classifier
n_latents = 512  # S: features to choose from
k = 32  # of them, how many may fire for one image
steps = 400  # optimiser steps
batch = 256  # images per step
lr = 2e-3  # learning rate
n_images = 20  # on the collage

# %%
import torch
from matplotlib import pyplot as plt

from mtlib import plots
from mtlib.embed import store
from mtlib.run.artifacts import ROOT

plots.use_style()
data = store.open_run(ROOT / run_dir)
x = torch.tensor(data.x[data.rows("train")])  # (N, D) embeddings
y = torch.tensor(data.y[data.rows("train")])  # (N, O) the classifier's hidden layer
N, D, O = *x.shape, y.shape[1]  # noqa: E741
print(f"{N} images, {D} units of x, {O} units of y")

# %% [markdown]
# ## The model
#
# Three lines: a product with `W_enc` gives every latent a value, only the `k` largest positive ones stay, and a product with
# `W_dec` turns them into a prediction of `y`. Input and target are centred and brought to size one first.

# %%
x_mean, y_mean = x.mean(0), y.mean(0)
x_size, y_size = ((v - m).square().mean().sqrt() for v, m in ((x, x_mean), (y, y_mean)))


def encode(x, W_enc, b_enc):
    z_pre = (x - x_mean) / x_size @ W_enc + b_enc  # (B, S)
    top = z_pre.relu().topk(k)
    return torch.zeros_like(z_pre).scatter(1, top.indices, top.values)  # (B, S), at most k are not zero


def loss(weights, x, y):
    W_enc, b_enc, W_dec, b_dec = weights
    y_hat = encode(x, W_enc, b_enc) @ W_dec + b_dec  # (B, O)
    return ((y_hat - (y - y_mean) / y_size) ** 2).mean()


# %%
torch.manual_seed(0)
unit = torch.nn.functional.normalize
start = [unit(torch.randn(n_latents, D)).T, torch.zeros(n_latents), unit(torch.randn(n_latents, O)), torch.zeros(O)]
weights = [w.clone().requires_grad_() for w in start]

# %% [markdown]
# ## Training
#
# Take some images, see how far off the prediction is, move every weight a little the other way, again.

# %%
order = [torch.randint(N, (batch,)) for _ in range(steps)]
optimiser, history = torch.optim.AdamW(weights, lr=lr, weight_decay=0), []
for rows in order:
    optimiser.zero_grad()
    error = loss(weights, x[rows], y[rows])
    error.backward()
    optimiser.step()
    history.append(error.item())

# %%
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(history)
ax.set(xlabel="step", ylabel="share of y unexplained", yscale="log")
# %% [markdown]
# The target has size one, so the error is the share of `y` that is still unexplained: 1 is what guessing the mean would
# leave.
#
# ## One feature that stands for an error
#
# No label was used so far. Now the validation images' labels choose a feature: of all, the one that finds implausible images
# most precisely among the images on which it fires. It must fire on at least `n_images` of them.

# %%
val = data.rows("val")
z = encode(torch.tensor(data.x[val]), *(w.detach() for w in weights[:2]))  # (N_val, S)
implausible = torch.tensor(data.labels(val) == 1)
fires = z > 0
precision = (fires & implausible[:, None]).sum(0) / fires.sum(0).clamp_min(1)
precision[fires.sum(0) < n_images] = 0
feature = int(precision.argmax())
print(f"feature {feature}: {precision[feature]:.0%} of its {int(fires[:, feature].sum())} images are implausible")

# %% [markdown]
# A number says little. Its strongest images, best first, say what it saw; the strip is orange where the label is
# *implausible*.

# %%
from mtlib.embed.images import load_image

best = z[:, feature].topk(n_images).indices
pictures = [load_image(data.images(val[i]))[0] for i in best.tolist()]
strips = [plots.PALETTE[1] if implausible[i] else plots.PALETTE[0] for i in best]
lines = [slice(i, i + 10) for i in range(0, n_images, 10)]
plots.image_grid([pictures[line] for line in lines], strips=[strips[line] for line in lines])
# %% [markdown]
# ## The same, by the package
#
# All methods of this repo are settings of one class. These are the settings of what was just written; the first step's loss
# and gradients are compared, then the whole training from the same weights on the same images.

# %%
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.sparse_coder import SparseCoder

scaled = dict(centre="mean", scale="rms", target_centre="mean", target_scale="rms")
config = SparseCoderConfig(d_in=D, d_out=O, n_latents=n_latents, target="y", selection="topk", ks=(k,), **scaled)
coder = SparseCoder(config).train()

# %%
with torch.no_grad():
    buffers = [coder.x_mean, coder.x_scale, coder.y_mean, coder.y_scale]
    theirs = [coder.enc, coder.enc_bias, coder.dec[0], coder.dec_bias[0]]
    for ours, value in zip(buffers + theirs, [x_mean, x_size, y_mean, y_size, *start], strict=True):
        ours.copy_(value)

# %%
first = [w.clone().requires_grad_() for w in start]
by_hand = torch.autograd.grad(loss(first, x[order[0]], y[order[0]]), first)
by_package = torch.autograd.grad(coder.loss(x[order[0]], y[order[0]])[0], theirs)
apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(by_hand, by_package, strict=True))
print(f"largest difference of the first gradients: {apart:.1e}")
assert apart < 1e-4

# %%
optimiser = torch.optim.AdamW(coder.parameters(), lr=lr, weight_decay=0)
for rows in order:
    optimiser.zero_grad()
    coder.loss(x[rows], y[rows])[0].backward()
    optimiser.step()

# %%
with torch.no_grad():
    error = loss([w.detach() for w in weights], x, y), coder.eval().loss(x, y)[0]
print(f"unexplained after training: {error[0]:.4f} by hand, {error[1]:.4f} by the package")
assert abs(error[0] - error[1]) < 0.02 * error[0]

# %% [markdown]
# ## What comes next
#
# Notebooks 01 to 07 do this with care: features are chosen on validation images and every rate is measured on test images,
# with its interval and base rate; several methods and seeds are compared at the same number of active features; each feature
# gets its images, a name and a verdict. **Matryoshka** transcoders add one idea: the first few features alone must already
# predict `y`, then the first few more, and so on, so that the broad features come first and the fine ones later.
