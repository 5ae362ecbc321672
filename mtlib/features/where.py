"""Where in its images does a feature fire? Heat maps, drawn over the images, and whether they lie on the known error.

A feature of tokens on a grid fires at places: its map is its activations there. A feature of pooled embeddings has one value for
a whole image: its map is what each place of a convolutional layer adds to that (`layer_maps`), or what it loses when a part of the
image is hidden (`occlusion_maps`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from mtlib.embed.images import load_image
from mtlib.embed.layers import Layer, blocks
from mtlib.embed.store import Data
from mtlib.features.collages import collage, jpeg
from mtlib.features.token_maps import grid_codes
from mtlib.run.artifacts import atomic
from mtlib.scenes.dataset import BOX
from mtlib.truth.causes import mean_interval

if TYPE_CHECKING:
    from mtlib.embed.encoders import Encoder

GRID = 5  # cells along a side of an occlusion map: smaller holes look like errors themselves
PLACES = 8  # along a side of a convolutional layer's map, at least
N_IMAGES = 6  # of a feature, on which it is drawn
HEAT, LEVELS = (214, 40, 0), 63  # colour of the strongest place; steps of a map that is stored


def _hidden(encoder: Encoder, size: tuple[int, int], grid: int) -> Tensor:
    """(grid * grid, 1, H, W) 0 .. 1: what of the encoder's input each cell of an image of a size (width, height) covers."""
    size = tuple(max(grid, round(side * min(1, 512 / max(size)))) for side in size)  # only its shape matters
    x, y = (np.linspace(0, side, grid + 1).round().astype(int).tolist() for side in size)
    black, white = (encoder.preprocess(Image.new("RGB", size, colour)) for colour in ("black", "white"))
    masks = []
    for i, j in np.ndindex(grid, grid):
        image = Image.new("RGB", size)
        image.paste("white", (x[j], y[i], x[j + 1], y[i + 1]))
        masks.append(((encoder.preprocess(image) - black) / (white - black))[:1])
    return torch.stack(masks)


@torch.no_grad()
def occlusion_maps(
    encoder: Encoder, coder, feature: int, images: list[Image.Image], grid: int = GRID, fill="mean"
) -> np.ndarray:
    """How much of a feature's value hangs on each part of an image: the fall of its activation when that cell is hidden.

    Args:
        images: RGB, as `load_image` gives them; each is encoded grid * grid + 1 times.
        fill:   what hides: "mean", the image's mean colour, or a colour that PIL knows.
    Returns: (n, grid, grid) float32 in the coder's units, rows from the top; negative where hiding makes the feature stronger.
    """
    falls, masks = np.zeros((len(images), grid, grid), np.float32), {}
    for n, image in enumerate(tqdm(images, "occlusion", delay=5, mininterval=5.0, file=sys.stdout, leave=False)):
        if image.size not in masks:
            masks[image.size] = _hidden(encoder, image.size, grid)
        colour = tuple(np.asarray(image).reshape(-1, 3).mean(0).round().astype(int)) if fill == "mean" else fill
        plain, pixels = (encoder.preprocess(one) for one in (Image.new("RGB", (8, 8), colour), image))
        shown = torch.cat([pixels[None], torch.lerp(pixels, plain.mean((1, 2))[:, None, None], masks[image.size])])
        x = torch.from_numpy(np.concatenate([encoder.encode_arrays(part)["x"] for part in shown.split(64)]))
        z = coder.encode(x.flatten(0, -2))[:, feature].reshape(len(x), -1).amax(1)
        falls[n] = (z[0] - z[1:]).reshape(grid, grid).numpy()
    return falls


def map_layer(encoder: Encoder) -> Layer | None:
    """The last block of a convolutional tower with a map of at least PLACES x PLACES, before what the run reads; None without."""
    names, read = blocks(encoder.tower), encoder.place.name
    for name in reversed(names[: names.index(read)] if read in names else names):
        layer = encoder.find_layer(name, "patches")
        if not layer.form.startswith("map"):
            break
        if min(layer.grid) >= PLACES:
            return layer
    return None


def layer_maps(encoder: Encoder, coder, feature: int, images: list[Image.Image], layer: Layer) -> np.ndarray:
    """What each place of a convolutional layer adds to a feature's value, to first order: activation x gradient where that is
    positive, summed over channels. An approximation, as the later layers are not linear.

    Returns: (n, H, W) float32 >= 0, H x W the layer's grid.
    Source: Jiang et al. 2021, LayerCAM, IEEE TIP 30 (of a class there, of a feature here).
    """
    seen, pixels = [], torch.stack([encoder.preprocess(image) for image in images])
    embed = getattr(encoder.model, "encode_image", encoder.model)
    hook = layer.module.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad_()))
    with torch.enable_grad(), hook, encoder.place.recorded() as x:
        embed(pixels.to(encoder.device, next(encoder.model.parameters()).dtype))
        value = coder.encode(x[0].float().cpu().flatten(0, 1))[:, feature].reshape(len(images), -1).amax(1)
        (slope,) = torch.autograd.grad(value.sum(), seen[0])
    found = layer.read((slope.relu() * seen[0]).detach()).sum(2).reshape(len(images), *layer.grid)
    return found.float().cpu().numpy()


def patch_maps(data: Data, coder, shown: pd.DataFrame) -> np.ndarray:
    """(n, H, W) activations of a feature at every place of an image, of each line (feature, row) of `shown`."""
    maps = np.zeros((len(shown), *data.facts.get("token_grid", (0, 0))), np.float32)
    for image, lines in shown.reset_index(drop=True).groupby(shown["row"].to_numpy() // data.tokens):
        maps[lines.index] = grid_codes(coder, data, image)[:, lines["feature"]].T.reshape(-1, *maps.shape[1:])
    return maps


def heat_maps(data: Data, coder, shown: pd.DataFrame, encoder: Encoder | None = None) -> np.ndarray:
    """A map of each line (feature, row) of `shown`, (n, H, W): of tokens on a grid, else of a convolutional layer, else by occlusion.

    Args: encoder: of the run, loaded where it is needed and not given.
    Raises: ImageRefused for an image that cannot be read; RuntimeError where the encoder is not at hand.
    """
    if on_grid(data) or shown.empty:
        return patch_maps(data, coder, shown)
    encoder, maps = encoder or encoder_of(data), {}
    layer = map_layer(encoder)
    each = shown.reset_index(drop=True).groupby("feature")
    for feature, lines in tqdm(each, "heat maps", delay=5, mininterval=5.0, file=sys.stdout):
        images, given = [load_image(data.images(row))[0] for row in lines["row"]], (encoder, coder, int(feature))
        found = layer_maps(*given, images, layer) if layer else occlusion_maps(*given, images)
        maps |= dict(zip(lines.index, found, strict=True))
    return np.stack([maps[i] for i in range(len(shown))])


def encoder_of(data: Data) -> Encoder:
    """The run's encoder. Its libraries are imported only now, as they take seconds."""
    from mtlib.embed.encoders import Encoder

    return Encoder.of(data.facts)


def on_grid(data: Data) -> bool:
    """Whether rows of x are tokens that stand on a grid over their image."""
    return min(data.facts.get("token_grid") or [0]) > 1


# ---- drawn and stored


def strongest(top: pd.DataFrame, split: str, n: int = N_IMAGES) -> pd.DataFrame:
    """feature, row, activation of each feature's n strongest images of a split. Args: top: top_images.parquet."""
    own = top[top["split"] == split].sort_values(["feature", "rank"], kind="stable")
    return own.groupby("feature").head(n)[["feature", "row", "activation"]].reset_index(drop=True)


def levels(maps: np.ndarray) -> np.ndarray:
    """Maps (n, H, W) as uint8 0 .. LEVELS, each by its own maximum; below 0 nothing is shown."""
    most = maps.max(axis=(1, 2), keepdims=True)
    return np.where(most > 0, maps.clip(0) / np.where(most > 0, most, 1) * LEVELS, 0).round().astype(np.uint8)


def overlay(image: Image.Image, level: np.ndarray, square: bool = False) -> Image.Image:
    """An image in grey with a map (H, W) of `levels` over it in red. Args: square: over the image's largest square only."""
    image = image.convert("RGB")
    image = ImageOps.fit(image, (min(image.size),) * 2) if square else image
    mask = Image.fromarray((level * (210 / LEVELS)).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", image.size, HEAT), ImageOps.grayscale(image).convert("RGB"), mask)


def write_heat(path: Path, data: Data, shown: pd.DataFrame, maps: np.ndarray) -> None:
    """Write maps for the page: feature, row (n,), level (n, H, W), square (of tokens: the map covers the image's middle square)."""
    with atomic(path) as tmp, open(tmp, "wb") as file:
        own = shown[["feature", "row"]].to_numpy(np.int64).T
        np.savez_compressed(file, feature=own[0], row=own[1], level=levels(maps), square=on_grid(data))


def write_tokens(folder: Path, coders: dict, tops: dict, data: Data, drawn: pd.DataFrame, settings) -> None:
    """Where x are tokens on a grid: folder/<method>/heat.npz for the page, and each collage again as where/<feature>.jpg, maps over it.

    Args: as `write_collages`, whose frame is `drawn`; coders: method -> coder.
    """
    for method, coder in coders.items() if on_grid(data) else ():
        shown = strongest(tops[method], "test")
        write_heat(folder / method / "heat.npz", data, shown, patch_maps(data, coder, shown))
        of = tops[method][tops[method]["feature"].isin(drawn.loc[drawn["method"] == method, "feature"])]
        for feature, own in strongest(of, settings.collage_split, settings.collage_images).groupby("feature"):
            images = [load_image(data.images(row))[0] for row in own["row"]]
            over = [overlay(*pair, True) for pair in zip(images, levels(patch_maps(data, coder, own)), strict=True)]
            head = dict(title=f"Feature {feature}", lines=[method], columns=settings.collage_columns)
            sheet = collage(over, own["activation"].tolist(), **head)
            with atomic(folder / method / "where" / f"{feature}.jpg") as tmp:
                tmp.write_bytes(jpeg(sheet))


# ---- against the truth


def covered(boxes: np.ndarray, grid: tuple[int, int], sizes: np.ndarray) -> np.ndarray:
    """(n, H, W) bool: cells of a grid whose centre lies in a box. Args: boxes (n, 4) x0, y0, x1, y1; sizes (n, 2) width, height, in pixels."""
    at = [(np.arange(cells) + 0.5) / cells * sizes[:, [k]] for k, cells in enumerate(grid[::-1])]  # x and y, (n, cells)
    across, down = ((v >= boxes[:, [k]]) & (v < boxes[:, [k + 2]]) for k, v in enumerate(at))
    return down[:, :, None] & across[:, None]


def share_inside(maps: np.ndarray, boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each map's strongest cells, as many as the box covers, the share in the box; and what chance would have there.

    Args: maps (n, H, W); boxes, sizes: as `covered`.
    Returns: (n,) shares 0 .. 1, NaN where no cell is covered or the map is the same everywhere; (n,) chance: the share of covered cells.
    """
    inside, flat = covered(boxes, maps.shape[1:], sizes).reshape(len(maps), -1), maps.reshape(len(maps), -1)
    share = np.full(len(maps), np.nan)
    for i in np.flatnonzero(inside.any(1) & (np.ptp(flat, axis=1) > 0)):
        share[i] = inside[i, np.argsort(-flat[i], kind="stable")[: inside[i].sum()]].mean()
    return share, inside.mean(1)


def where_table(data: Data, coder, chosen: dict[str, tuple], n_occluded: int, seed: int = 0) -> pd.DataFrame:
    """Whether the heat maps of the features that stand for errors lie on the errors.

    Args:
        chosen:     of `tables.firing`: cause -> feature, rows of images that show it.
        n_occluded: of each cause, at most so many images for occlusion, which encodes an image once for each hidden square.
    Returns: frame of map, cause ("all": of all images), feature, n (images), share (mean of `share_inside`), share_low, share_high
        (95%: BCa over the images), chance; no line where no feature fires on an image that shows its cause.
    """
    encoder = None if on_grid(data) else encoder_of(data)
    layer, parts = encoder and map_layer(encoder), []
    name = f"{layer.name}, {layer.grid[0]} x {layer.grid[1]}" if layer else "" if encoder else "tokens"
    for cause, (feature, rows) in chosen.items():
        shown = pd.DataFrame({"feature": feature, "row": rows})
        images = [load_image(data.images(row))[0] for row in rows]
        few = slice(None, None, max(1, -(-len(rows) // n_occluded)))
        made = {name: (shown, heat_maps(data, coder, shown, encoder))} if name else {}
        if encoder:
            made[f"occlusion, {GRID} x {GRID}"] = shown[few], occlusion_maps(encoder, coder, feature, images[few])
        for kind, (own, maps) in made.items():
            sizes, boxes = np.array([images[i].size for i in own.index]), data.truth[list(BOX)].to_numpy()[own["row"]]
            share, chance = share_inside(maps, boxes, sizes)
            parts.append(own.assign(map=kind, cause=cause, share=share, chance=chance))
    if not parts:
        return pd.DataFrame(columns=["map", "cause", "feature", "n", "share", "share_low", "share_high", "chance"])
    each, lines = pd.concat(parts, ignore_index=True).dropna(subset=["share"]), []
    both = pd.concat([each, each.assign(cause="all", feature=-1)])
    for (name, cause), own in both.groupby(["map", "cause"], sort=False):
        line = {"map": name, "cause": cause, "feature": own["feature"].iloc[0], "n": len(own)}
        lines.append(line | mean_interval(own["share"], "share", seed) | {"chance": own["chance"].mean()})
    return pd.DataFrame(lines)
