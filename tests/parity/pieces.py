"""What the systems' files share: inputs, coders with drawn weights in float64, and pieces of formulas in plain NumPy."""

import numpy as np
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig

B, D, O, S = 24, 10, 7, 64  # noqa: E741
MARGIN = (
    1e-7  # between what is kept and what is not, relative to the larger: a selection never decides by its last digit
)


def drawn_coder(name: str, **settings) -> SparseCoder:
    """A preset in float64 with drawn weights."""
    coder = SparseCoder(SparseCoderConfig.preset(name, D, O, **({"n_latents": S} | settings))).double()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, coder.parameters()):
            p.copy_(0.4 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        if coder.theta is not None:
            coder.theta.copy_(0.1 + 0.3 * torch.rand(S, generator=g, dtype=torch.float64))
    return coder


def data(d_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (B, D) and targets (B, d_out)."""
    rng = np.random.default_rng(7)
    return rng.normal(size=(B, D)) + 0.2, rng.normal(size=(B, d_out))


def weights(coder: SparseCoder) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in coder.named_parameters()}


def preset_items(name: str, formula, label: str = "", **settings) -> dict:
    """Codes, every level and the loss of a preset: formula(weights, x, y) -> codes in training, L outputs, loss."""

    def ours():
        coder = drawn_coder(name, **settings)
        x, y = data(coder.config.d_out)
        y = x if coder.config.target == "x" else y
        z = coder.encode(tensor(x)) if coder.config.selection != "batch_topk" else batch_codes(coder, x)
        y_hats = [coder.decode(z, level, tensor(x)) for level in range(len(coder.config.levels))]
        loss = coder.loss(tensor(x), tensor(y))[0]
        return coder, x, y, [array(z), np.stack([array(y) for y in y_hats]), array(loss)]

    def item(place: int):
        def compare():
            coder, x, y, found = ours()
            z, outs, loss = formula(weights(coder), x, y)
            return found[place], (z, np.stack(outs), loss)[place]

        return compare

    return {f"{label or name}: {what}": item(place) for place, what in enumerate(("codes", "levels", "loss"))}


def batch_codes(coder: SparseCoder, x: np.ndarray) -> torch.Tensor:
    """Codes of a training batch, whose rows compete."""
    return coder._select(coder._activate(coder._pre(tensor(x))), batchwise=True)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values)


def array(values: torch.Tensor) -> np.ndarray:
    return values.detach().numpy()


def relu(v: np.ndarray) -> np.ndarray:
    return np.maximum(v, 0)


def mse(y: np.ndarray, y_hat: np.ndarray) -> float:
    return float(np.mean((y - y_hat) ** 2))


def clear(kept: float, dropped: float) -> None:
    """Assert that no rounding could have exchanged what is kept (> dropped) for what is not; two zeros are the same."""
    assert kept == dropped == 0 or kept - dropped > MARGIN * max(abs(kept), abs(dropped)), (kept, dropped)


def top(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, the rest 0."""
    out = np.zeros_like(values)
    for row, order in enumerate(np.argsort(-values, axis=1)):
        kept, dropped = order[:k], order[k:]
        if len(dropped):
            clear(values[row, kept[-1]], values[row, dropped[0]])
        out[row, kept] = values[row, kept]
    return out


def top_of_batch(values: np.ndarray, k: int) -> np.ndarray:
    """The k * B largest of the batch, the rest 0."""
    out, order = np.zeros_like(values), np.argsort(-values, axis=None)
    kept, dropped = order[: k * len(values)], order[k * len(values) :]
    if len(dropped):
        clear(values.flat[kept[-1]], values.flat[dropped[0]])
    out.flat[kept] = values.flat[kept]
    return out
