"""The features of one token, and where else in its image they fire: for runs whose x are tokens on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mtlib.embed.store import Data
from mtlib.plots import PALETTE, legend, method_styles


@dataclass(frozen=True)
class TokenMap:
    """The strongest features of one token of one image.

    row: of x; place: (row, column) on the grid; features (n,); activations (n, H, W): of each feature at every place of
    the image; so activations[i][place] is the token's own, and falls with i.
    """

    row: int
    place: tuple[int, int]
    features: np.ndarray
    activations: np.ndarray

    @property
    def table(self) -> pd.DataFrame:
        """A line per feature: rank, feature, activation of the token, share of the image's places on which it fires."""
        own = self.activations[:, self.place[0], self.place[1]]
        fires = (self.activations > 0).mean(axis=(1, 2))
        ranks = np.arange(1, len(own) + 1)
        return pd.DataFrame({"rank": ranks, "feature": self.features, "activation": own, "fires_on": fires})


@torch.no_grad()
def token_map(coder, data: Data, image: int, place: tuple[int, int] | None = None, n: int = 10) -> TokenMap:
    """The n strongest features of a token (fewer when fewer fire).

    Args:
        coder: has `.encode(x (B, D)) -> z (B, S)`.
        data:  tokens on a grid (facts token_grid and first_patch).
        image: number of the image: its rows are image * T .. image * T + T - 1.
        place: (row, column) on the grid; None: the token on which most is going on, by the sum of its activations.
    Raises: ValueError when the tokens form no grid, or there is no such image or place.
    """
    (height, width), first = data.facts.get("token_grid", (0, 0)), int(data.facts.get("first_patch", 0))
    if not height * width:
        raise ValueError("the rows of this run are no tokens on a grid; use vision, or a layer with tokens = patches")
    start = image * data.tokens + first
    if not 0 <= start < len(data.x):
        raise ValueError(f"image = {image}: there are {len(data.x) // data.tokens} images")
    x = np.array(data.x[start : start + height * width], np.float32)
    z = coder.encode(torch.from_numpy(x)).numpy()  # (H * W, S)
    at = int(z.sum(axis=1).argmax()) if place is None else place[0] * width + place[1]
    if place is not None and not (0 <= place[0] < height and 0 <= place[1] < width):
        raise ValueError(f"place = {place}: the grid is {height} x {width}")
    order = np.argsort(-z[at], kind="stable")[:n]
    order = order[z[at, order] > 0]
    maps = z[:, order].T.reshape(len(order), height, width)
    return TokenMap(start + at, divmod(at, width), order, maps)


def token_figure(found: TokenMap, picture: Image.Image, corners: tuple[float, float] | None = None) -> Figure:
    """The image with the token outlined, then each feature's activations laid over it, the strongest first.

    Args:
        picture: the image as the model saw it (square).
        corners: (left edge of the first place, width of a place) in pixels of the picture; None: the grid fills it.
    """
    height, width = found.activations.shape[1:]
    left, size = corners or (0.0, picture.width / width)
    extent = (left, left + size * width, left + size * height, left)
    columns = 4
    rows = -(-(len(found.features) + 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.3 * columns, 2.5 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, ax in enumerate(axes.flat[: len(found.features) + 1]):
        ax.imshow(picture.convert("L") if i else picture, cmap="gray", vmin=0, vmax=255)
        corner = (left + size * found.place[1], left + size * found.place[0])
        ax.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=PALETTE[1], linewidth=2))
        if i:
            seen = found.activations[i - 1]
            ax.imshow(seen, extent=extent, cmap="viridis", alpha=0.65, vmin=0, vmax=max(seen.max(), 1e-12))
            own = seen[found.place]
            ax.set_title(f"{i}: feature {found.features[i - 1]}, {own:.2g} of {seen.max():.2g}", fontsize=9)
        else:
            ax.set_title(f"token at row {found.place[0]}, column {found.place[1]}", fontsize=9)
        ax.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    return fig


def curves(histories: dict[str, pd.DataFrame], styles: dict[str, dict] | None = None) -> tuple[Figure, pd.DataFrame]:
    """MSE, FVU and L0 per token against training steps, as published for the AlexNet-Transformer: a line per method.

    Args: histories: method -> `train.read_history`; styles: of the run's methods. Lines are means since the last row (train); points are exact (val).
    Returns: figure; frame of method, step, split, mse (train only, in the coder's units), fvu, l0.
    """
    columns = {"reconstruction": "mse"}
    parts = [h.rename(columns=columns).assign(method=m) for m, h in histories.items()]
    frame = pd.concat(parts, ignore_index=True)[["method", "step", "split", "mse", "fvu", "l0"]]
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.2))
    styles = styles or method_styles(histories)
    names = {"mse": "MSE", "fvu": "FVU", "l0": "L0 (features per token)"}
    for ax, (name, label) in zip(axes, names.items(), strict=True):
        for method, part in frame.groupby("method", sort=False):
            train, val = part[part["split"] == "train"], part[part["split"] == "val"]
            dots = styles[method] | {"linestyle": ""}
            line = dict(color=styles[method]["color"], linestyle=styles[method]["linestyle"])
            ax.plot(train["step"], train[name], label=method, **line if len(train) > 1 else dots)
            if name != "mse":
                ax.plot(val["step"], val[name], markersize=3, **dots)
        ax.set(xlabel="step", ylabel=label, yscale="log")
    legend(fig)
    return fig, frame
