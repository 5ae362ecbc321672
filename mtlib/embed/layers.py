"""The activations of a layer: found by name or block number, read by a forward hook, and replaced by one.

A layer's output is a sequence (B, T, D) or (T, B, D), a map (B, C, H, W) or (B, H, W, C), or a vector (B, D). Which axis
counts the images is measured, by two passes with one and with two images, and not guessed from the model's name. All of
them are read as (B, T, D); a map's T tokens are its H * W places, row by row.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

TOKENS = ("cls", "patches", "all", "mean")


class LayerError(ValueError):
    """A layer that the model does not have, or tokens that the layer does not have; the message names what there is."""


@dataclass(frozen=True)
class Layer:
    """One place in an image tower, and which of its tokens are meant.

    name: dotted path in the model; tokens: one of TOKENS; axis: of the images in the raw output; form: "sequence", "map"
    (channels first), "map_last" or "vector"; prefix: tokens before the patches (class and register tokens); has_class:
    whether the first of them is a class token; grid: (H, W) of the patches, or (0, 0) when they form none; width: D;
    n_tokens: T after the choice of tokens, 0 where it was not measured.
    """

    name: str
    module: nn.Module
    tokens: str
    axis: int
    form: str
    prefix: int
    grid: tuple[int, int]
    width: int
    n_tokens: int
    has_class: bool = False

    @staticmethod
    def output(tower: nn.Module, width: int) -> Layer:
        """The tower's own output, the final embedding (B, D), as a layer of one token."""
        return Layer("", tower, "all", 0, "vector", 0, (0, 0), width, 1)

    @staticmethod
    def find(tower: nn.Module, forward: Callable[[int], object], layer: str, tokens: str) -> Layer:
        """The layer of an image tower.

        Args:
            tower:   the image tower (open_clip's `model.visual`, or a timm model).
            forward: runs the tower on that many images.
            layer:   a block number as text (0 first, -1 last) or the path of a module.
            tokens:  "cls" (the class token), "patches", "all", or "mean" (over the patches).
        Raises: LayerError when there is no such layer, or it has no such tokens.
        """
        if tokens not in TOKENS:
            raise LayerError(f"tokens = {tokens!r} is not one of {', '.join(TOKENS)}")
        name, module = _module(tower, layer)
        one, two = (_output(module, forward, n) for n in (1, 2))
        axes = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if (a, b) == (1, 2)]
        if not axes or one.ndim not in (2, 3, 4) or axes[0] > 1:
            raise LayerError(
                f"layer = {layer!r} ({name}) gives {tuple(two.shape)} for 2 images; expected tokens or a map"
            )
        trunk = getattr(tower, "trunk", tower)
        last = one.ndim == 4 and getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        form = {2: "vector", 3: "sequence", 4: "map_last" if last else "map"}[one.ndim]
        prefix, has_class = _prefix(trunk) if form == "sequence" else (0, False)
        if tokens == "cls" and not has_class:
            raise LayerError(f"layer = {layer!r} ({name}) has no class token; use tokens = 'patches', 'all' or 'mean'")
        grid = {"map": tuple(one.shape[2:]), "map_last": tuple(one.shape[1:3])}.get(form, (0, 0))
        found = Layer(name, module, tokens, axes[0], form, prefix, grid, 0, 0, has_class)
        n_patches = found._sequence(one).shape[1] - prefix
        side = round(n_patches**0.5)
        if form == "sequence" and side * side == n_patches:
            grid = (side, side)
        _, n_tokens, width = found.read(one).shape
        return replace(found, grid=grid, width=width, n_tokens=n_tokens)

    @property
    def replaceable(self) -> list[str]:
        """What a coder of these tokens can take the place of: the tokens that were read; with a class token also all tokens
        for a coder of the class token (SAE-for-CLIP), and the class token alone for one of all."""
        if self.tokens == "mean":
            return []
        others = {"all": ["cls"], "cls": ["all"]} if self.has_class else {}
        return [self.tokens, *others.get(self.tokens, [])]

    def at(self, tokens: str) -> Layer:
        """The same place, other tokens read and replaced: "cls" or "all". Raises: LayerError for "cls" without a class token."""
        if tokens == "cls" and not self.has_class:
            raise LayerError(f"{self.name!r} has no class token")
        return replace(self, tokens=tokens, n_tokens=1 if tokens == "cls" else 0)

    @property
    def facts(self) -> dict:
        """What an artifact records about where its rows come from."""
        first = self.prefix if self.tokens == "all" else 0
        grid = list(self.grid) if self.tokens in ("patches", "all") else [0, 0]
        places = {"token_grid": grid, "first_patch": first}
        return {"layer": self.name, "tokens": self.tokens, "tokens_per_image": self.n_tokens} | places

    @property
    def _chosen(self) -> slice:
        return {"cls": slice(0, 1), "all": slice(None)}.get(self.tokens, slice(self.prefix, None))

    def read(self, output: Tensor) -> Tensor:
        """The chosen tokens (B, T, D) of the module's raw output; a view where that is possible."""
        x = self._sequence(output)[:, self._chosen]
        return x.mean(dim=1, keepdim=True) if self.tokens == "mean" else x

    def write(self, output: Tensor, value: Tensor) -> Tensor:
        """The raw output with the chosen tokens replaced by `value` (B, T, D); the others stay.

        Raises: LayerError for tokens = "mean", which cannot be put back, or a value of another shape.
        """
        if self.tokens == "mean":
            raise LayerError("tokens = 'mean' cannot be replaced; use 'cls', 'patches' or 'all'")
        x = self._sequence(output).clone()
        if value.shape != x[:, self._chosen].shape:
            raise LayerError(f"replacement {tuple(value.shape)}, expected {tuple(x[:, self._chosen].shape)}")
        x[:, self._chosen] = value.to(x.dtype)
        if self.form == "sequence":
            return x if self.axis == 0 else x.transpose(0, 1)
        if self.form == "map":
            return x.transpose(1, 2).reshape(output.shape)
        return x.reshape(output.shape)

    def _sequence(self, output: Tensor) -> Tensor:
        """Every token, (B, T, D)."""
        if self.form == "sequence":
            return output if self.axis == 0 else output.transpose(0, 1)
        if self.form == "vector":
            return output[:, None]
        return output.flatten(2).transpose(1, 2) if self.form == "map" else output.flatten(1, 2)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Within the block, every forward pass appends the chosen tokens (B, T, D), copied, to the list.

        Example:
            with layer.recorded() as seen:
                model.encode_image(pixels)
            x = seen[0]
        """
        seen: list[Tensor] = []
        with self.module.register_forward_hook(lambda _m, _i, out: seen.append(self.read(_tensor(out)).clone())):
            yield seen

    @contextlib.contextmanager
    def replaced(self, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within the block, forward passes go on with `replace(tokens (B, T, D))` in place of the chosen tokens.

        Example:
            with layer.replaced(lambda x: coder.decode(coder.encode(x.flatten(0, 1))).view_as(x)):
                spliced = model.encode_image(pixels)
        """

        def swap(_module, _inputs, out):
            output = _tensor(out)
            new = self.write(output, replace(self.read(output)))
            return new if out is output else (new, *out[1:])

        with self.module.register_forward_hook(swap):
            yield


def blocks(tower: nn.Module) -> list[str]:
    """Paths of the blocks that a number means: residual blocks of a transformer, stages of a convolutional tower."""
    found = dict(tower.named_modules())
    if "transformer.resblocks" in found:
        return [f"transformer.resblocks.{i}" for i in range(len(found["transformer.resblocks"]))]
    if hasattr(tower, "trunk"):
        return [f"trunk.{path}" for path in blocks(tower.trunk)]
    if "blocks" in found and isinstance(found["blocks"], (nn.Sequential, nn.ModuleList)):
        return [f"blocks.{i}" for i in range(len(found["blocks"]))]
    stages = [stage["module"] for stage in getattr(tower, "feature_info", None) or []]
    return stages or [f"layer{i}" for i in range(1, 5) if f"layer{i}" in found]


def _module(tower: nn.Module, layer: str) -> tuple[str, nn.Module]:
    found = dict(tower.named_modules())
    if layer.lstrip("-").isdigit():
        names, number = blocks(tower), int(layer)
        if not -len(names) <= number < len(names):
            raise LayerError(f"layer = {layer!r}: the tower has {len(names)} blocks, 0 to {len(names) - 1}: {names}")
        return names[number], found[names[number]]
    path = layer.removeprefix("visual.")
    if path not in found or not path:
        near = difflib.get_close_matches(path, found, n=3, cutoff=0.3)
        raise LayerError(f"layer = {layer!r} is no module of the image tower; nearest: {', '.join(near) or 'none'}")
    return path, found[path]


def _prefix(trunk: nn.Module) -> tuple[int, bool]:
    """(number of tokens before the patches, whether the first is a class token)."""
    if hasattr(trunk, "num_prefix_tokens"):
        return int(trunk.num_prefix_tokens), getattr(trunk, "cls_token", None) is not None
    has_class = isinstance(getattr(trunk, "class_embedding", None), Tensor)
    return int(has_class), has_class


def _tensor(output) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def _output(module: nn.Module, forward: Callable[[int], object], n: int) -> Tensor:
    seen = []
    with module.register_forward_hook(lambda _m, _i, out: seen.append(_tensor(out))):
        forward(n)
    if not seen or not isinstance(seen[0], Tensor):
        raise LayerError("the layer takes no part in the tower's forward pass, or gives no tensor")
    return seen[0]
