"""What a vision model's decisions lose when a coder's reconstruction takes the place of its residual stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mtlib.measure.splice import replacement


@torch.inference_mode()
def accuracy_spliced(model, coder, pixels: np.ndarray, labels: np.ndarray, batch: int = 32) -> dict:
    """Accuracy as it is, with the coder spliced in after the block it was trained on, and with one constant token.

    Args:
        model:  an AlexNetTransformer in eval mode. coder: an autoencoder of its stream.
        pixels: (n, 3, side, side) uint8. labels: (n,) int.
        batch:  images at a time.
    Returns: n; accuracy, accuracy_spliced, accuracy_constant (every token is the mean of these images' tokens: what is
        left when nothing of the stream is); agreement (share of images with the same decision); drop (percentage points).
    """
    layer, splice = model.layer(), replacement(coder)
    with layer.recorded() as seen:
        plain = _decisions(model, pixels, batch)
    mean = torch.cat(seen).flatten(0, 1).mean(dim=0)
    spliced = _replaced(model, layer, splice, pixels, batch)
    constant = _replaced(model, layer, lambda x: mean.expand_as(x), pixels, batch)
    right = {"accuracy": plain, "accuracy_spliced": spliced, "accuracy_constant": constant}
    shares = {name: float((found == labels).mean()) for name, found in right.items()}
    drop = 100 * (shares["accuracy"] - shares["accuracy_spliced"])
    return {"n": len(labels)} | shares | {"agreement": float((plain == spliced).mean()), "drop": drop}


def _replaced(model, layer, replace: Callable[[Tensor], Tensor], pixels: np.ndarray, batch: int) -> np.ndarray:
    with layer.replaced(replace):
        return _decisions(model, pixels, batch)


def _decisions(model, pixels: np.ndarray, batch: int) -> np.ndarray:
    device = model.positions.device
    parts = [torch.from_numpy(np.array(pixels[i : i + batch])) for i in range(0, len(pixels), batch)]
    return np.concatenate([model(part.to(device)).argmax(dim=1).cpu().numpy() for part in parts])
