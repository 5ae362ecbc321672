"""The features of one token, and where else in its image they fire: for runs whose x are tokens on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mtlib.embed.images import load_image
from mtlib.embed.store import Data
from mtlib.embed.vision import AlexNetTransformer, square
from mtlib.learn.classifier import targets
from mtlib.measure.zero_shot import accuracy_spliced
from mtlib.plots import PALETTE, image_grid

SIDE = 224  # pixels of a picture where no vision model says otherwise
COLUMNS = 4  # of a figure


@dataclass(frozen=True)
class TokenMap:
    """The strongest features (n,) of the token in row `row` of x, at `place` (row, column) of its image's grid.

    activations (n, H, W): of each feature at every place of the image; so activations[i][place] is the token's own.
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
        frame = pd.DataFrame({"feature": self.features, "activation": own, "fires_on": fires})
        return frame.rename_axis("rank").rename(index=lambda i: i + 1).reset_index()


@torch.no_grad()
def grid_codes(coder, data: Data, image: int) -> np.ndarray:
    """(H * W, S) codes of an image's tokens on their grid, row by row. Args and Raises: as `token_map`."""
    (height, width), first = data.facts.get("token_grid", (0, 0)), int(data.facts.get("first_patch", 0))
    if not height * width:
        raise ValueError("the rows of this run are no tokens on a grid; use vision, or a layer with tokens = patches")
    start = image * data.tokens + first
    if not 0 <= start < len(data.x):
        raise ValueError(f"image = {image}: there are {len(data.x) // data.tokens} images")
    return coder.encode(torch.from_numpy(np.array(data.x[start : start + height * width], np.float32))).numpy()


def token_map(coder, data: Data, image: int, place: tuple[int, int] | None = None, n: int = 10) -> TokenMap:
    """The n strongest features of a token (fewer when fewer fire).

    Args:
        data:  tokens on a grid (facts token_grid and first_patch).
        image: number of the image: its rows are image * T .. image * T + T - 1.
        place: (row, column) on the grid; None: the token with the largest sum of activations.
    Raises: ValueError when the tokens form no grid, or there is no such image or place.
    """
    z, start = grid_codes(coder, data, image), image * data.tokens + int(data.facts.get("first_patch", 0))
    height, width = data.facts["token_grid"]
    at = int(z.sum(axis=1).argmax()) if place is None else place[0] * width + place[1]
    if place is not None and not (0 <= place[0] < height and 0 <= place[1] < width):
        raise ValueError(f"place = {place}: the grid is {height} x {width}")
    order = np.argsort(-z[at], kind="stable")[: min(n, int((z[at] > 0).sum()))]
    return TokenMap(start + at, divmod(at, width), order, z[:, order].T.reshape(len(order), height, width))


def spliced(model: AlexNetTransformer, coder, data: Data, n: int) -> pd.DataFrame:
    """`accuracy_spliced` on at most n labelled test images, evenly taken: one line, or none without such an image."""
    labels, _ = targets(data.manifest.iloc[:: data.tokens], data.facts["labels"])
    test = np.unique(data.rows("test") // data.tokens)
    test = test[labels[test] >= 0]
    if not len(test):
        return pd.DataFrame()
    test = test[np.linspace(0, len(test) - 1, min(n, len(test))).round().astype(int)]
    side = model.config.side
    pixels = [square(load_image(data.images(i * data.tokens))[0], side, model.config.shorter) for i in test]
    return pd.DataFrame([accuracy_spliced(model, coder, np.stack(pixels), labels[test])])


def token_picture(data: Data, image: int, model: AlexNetTransformer | None = None) -> Image.Image:
    """An image as the vision model sees it, square; white where no image is to be shown (`pictures: false` in 01).

    Args: model: whose tokens are x; None where x are tokens of a layer of the encoder.
    """
    side, shorter = (model.config.side, model.config.shorter) if model else (SIDE, 0)
    if not data.pictures:
        return Image.new("RGB", (side, side), "white")
    return Image.fromarray(square(load_image(data.images(image * data.tokens))[0], side, shorter).transpose(1, 2, 0))


def token_figure(found: TokenMap, picture: Image.Image, model: AlexNetTransformer | None = None) -> Figure:
    """The image with the token outlined, then each feature's activations laid over it, the strongest first.

    Args: picture, model: see `token_picture`; without a model the grid fills the picture.
    """
    height, width = found.activations.shape[1:]
    left, size = 0.0, picture.width / width
    if model is not None:  # its convolutions look at places that lie a little inside
        first, second = model.config.centres[:2]
        left, size = first - (second - first) / 2, second - first
    extent = (left, left + size * width, left + size * height, left)
    shown = [picture, *[picture.convert("L")] * len(found.features)]
    fig = image_grid([shown[i : i + COLUMNS] for i in range(0, len(shown), COLUMNS)], side=2.3)
    for i, ax in enumerate(fig.axes[: len(shown)]):
        corner = (left + size * found.place[1], left + size * found.place[0])
        ax.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=PALETTE[1], linewidth=2))
        title = f"token at row {found.place[0]}, column {found.place[1]}"
        if i:
            seen = found.activations[i - 1]
            ax.imshow(seen, extent=extent, cmap="viridis", alpha=0.65, vmin=0, vmax=max(seen.max(), 1e-12))
            title = f"{i}: feature {found.features[i - 1]}, {seen[found.place]:.2g} of {seen.max():.2g}"
        ax.set_title(title, fontsize=9)
        ax.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    return fig
