"""MSAE (arXiv 2502.20578): top-k autoencoders, and nested k on one dictionary; errors over the size of each row."""

import numpy as np

from mtlib.features.msae_files import row_scores
from mtlib.measure.codes import keep_largest
from mtlib.measure.similarity import cknna
from tests.parity.pieces import D, array, clear, drawn_coder, preset_items, relu, tensor, top, top_of_batch, weights
from tests.parity.steps import gradient_items, step_items

NESTED_KS = (4, 8, 16, 64)
SETTINGS = {"relu": {}, "topk": dict(k=5), "batch_topk": dict(k=5)}
SETTINGS |= {name: dict(ks=NESTED_KS) for name in ("msae_uw", "msae_rw")}
SELECT = {
    "relu": [lambda z: z],
    "topk": [lambda z: top(z, 5)],
    "batch_topk": [lambda z: top_of_batch(z, 5)],
    "msae_uw": [lambda z, k=k: top(z, k) for k in NESTED_KS],
}
SELECT["msae_rw"] = SELECT["msae_uw"]
SHARES = {"msae_uw": [0.25] * 4, "msae_rw": [0.4, 0.3, 0.2, 0.1]}


def loss_and_gradients(w, x, name, error="nmse", cap=0.0):
    """Codes of every level, outputs, loss, and the loss's gradient of every weight, by the chain rule."""
    B, D = x.shape
    pre = (x - w["dec_bias.0"]) @ w["enc"] + w["enc_bias"]
    size = (x**2).mean(1, keepdims=True) if error == "nmse" else 1.0
    codes, outs, loss = [], [], 0.0
    d_pre, d_dec, d_bias = 0.0, 0.0, 0.0
    for share, select in zip(SHARES.get(name, [1.0]), SELECT[name], strict=True):
        kept = select(relu(pre))
        z = cap * np.tanh(kept / cap) if cap else kept
        out = z @ w["dec.0"] + w["dec_bias.0"]
        loss = loss + share * ((out - x) ** 2 / size).mean()
        d_out = share * 2 * (out - x) / (size * B * D)
        d_z = d_out @ w["dec.0"].T
        if name == "relu":
            loss = loss + 0.003 * (np.abs(z).sum(1) / np.linalg.norm(x, axis=1)).mean()
            d_z = d_z + 0.003 / (B * np.linalg.norm(x, axis=1, keepdims=True))
        slope = 1 - (z / cap) ** 2 if cap else 1.0
        d_pre = d_pre + d_z * slope * (kept > 0)
        d_dec, d_bias = d_dec + z.T @ d_out, d_bias + d_out.sum(0)
        codes.append(z)
        outs.append(out)
    grads = {"enc": (x - w["dec_bias.0"]).T @ d_pre, "enc_bias": d_pre.sum(0), "dec.0": d_dec}
    grads["dec_bias.0"] = d_bias - (d_pre @ w["enc"].T).sum(0)
    return codes, outs, loss, grads


def _formula(name, **settings):
    def formula(w, x, y):
        codes, outs, loss, _ = loss_and_gradients(w, x, name, **settings)
        return codes[-1], outs, loss

    return formula


def unit_rows(w: dict) -> None:
    """Decoder rows to norm 1; encoder columns and biases take up their length."""
    norm = np.linalg.norm(w["dec.0"], axis=1) + np.finfo(np.float32).eps
    w["dec.0"] /= norm[:, None]
    w["enc"] *= norm
    w["enc_bias"] *= norm


def projected(w: dict, grads: dict) -> None:
    along = (grads["dec.0"] * w["dec.0"]).sum(1, keepdims=True) * w["dec.0"]
    grads["dec.0"] = grads["dec.0"] - along / (w["dec.0"] ** 2).sum(1, keepdims=True)


def rate(epoch: int, epochs: int) -> float:
    """Share of the learning rate in an epoch, 0 the first."""
    return 1.0 if epoch < int(0.8 * epochs) else (epochs - epoch) / (0.2 * epochs)


def _published(w, grads):
    """Unit rows, then the projection, both between gradients and step."""
    unit_rows(w)
    projected(w, grads)


HOW = dict(clip=1.0, eps=6.25e-10, rate=rate)
AS_PUBLISHED = HOW | dict(before=_published)
DEFAULT = HOW | dict(before=projected, after=unit_rows)
FORMULAS = {name: _formula(name) for name in SETTINGS}
ITEMS = {k: v for name, f in FORMULAS.items() for k, v in preset_items(name, f, **SETTINGS[name]).items()}
CAPPED = dict(error="mse", cap=0.7)
for name in SETTINGS:
    own = SETTINGS[name]
    ITEMS |= gradient_items(name, lambda w, x, n=name: loss_and_gradients(w, x, n)[3], **own)
    loss = lambda w, x, n=name: loss_and_gradients(w, x, n)[3]  # noqa: E731
    ITEMS |= step_items(name, loss, dict(as_published=True) | own, AS_PUBLISHED)
    ITEMS |= step_items(name, loss, own, DEFAULT)
ITEMS |= preset_items("topk", _formula("topk", **CAPPED), label="topk, mse, soft cap", k=5, error="mse", soft_cap=0.7)
ITEMS |= gradient_items(
    "msae_rw",
    lambda w, x: loss_and_gradients(w, x, "msae_rw", **CAPPED)[3],
    label="msae_rw, mse, soft cap",
    ks=NESTED_KS,
    error="mse",
    soft_cap=0.7,
)


# ---- what is measured of codes


def _cknna(a, b, k=10):
    """Kernels of rows, restricted to pairs (i, j) where j is among the k nearest others of i in both; unbiased HSIC."""
    n = len(a)

    def hsic(p, q):
        total = 0.0
        p, q = (np.where(np.eye(n, dtype=bool), 0, m) for m in (p, q))
        total += np.trace(p @ q) + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * (p @ q).sum() / (n - 2)
        return total / (n * (n - 3))

    def near(kernel):
        mask = np.zeros((n, n))
        for i in range(n):
            order = [j for j in np.argsort(-kernel[i]) if j != i]
            clear(kernel[i, order[k - 1]], kernel[i, order[k]])
            mask[i, order[:k]] = 1
        return mask

    p, q = a @ a.T, b @ b.T
    mine, theirs = near(p), near(q)
    both = mine * theirs
    return hsic(both * p, both * q) / np.sqrt(hsic(mine * p, mine * p) * hsic(theirs * q, theirs * q))


def _rows():
    rng = np.random.default_rng(11)
    x = rng.normal(size=(40, 12)) + 0.1
    return x, x + 0.3 * rng.normal(size=x.shape), np.maximum(x @ rng.normal(size=(12, 30)), 0)


def _row_scores():
    x, x_hat, z = _rows()
    found = row_scores(x, x_hat, z)
    lines = []
    for a, b, c in zip(x, x_hat, z, strict=True):
        error, cosine = a - b, a @ b / np.sqrt((a @ a) * (b @ b))
        fvu = ((error - error.mean()) ** 2).mean() / ((a - a.mean()) ** 2).mean()
        lines.append([fvu, np.abs(error).sum() / np.abs(a).sum(), cosine, (c == 0).sum() / len(c)])
    return np.stack([found[name] for name in ("fvu", "mae", "cs", "l0")], 1), np.array(lines)


def _recovery():
    """What is left when k of all codes are kept, k below and above the trained one."""
    coder = drawn_coder("topk", k=5).eval()
    x = _rows()[0][:, :D]
    ours, w = [], weights(coder)
    all_codes = coder.encode_all(tensor(x))
    for k in (3, 5, 20, 64):
        ours.append(array(coder.decode(keep_largest(all_codes, k), -1, tensor(x))))
    z = relu((x - w["dec_bias.0"]) @ w["enc"] + w["enc_bias"])
    return np.stack(ours), np.stack([top(z, k) @ w["dec.0"] + w["dec_bias.0"] for k in (3, 5, 20, 64)])


def _codes_against_inputs():
    x, _, z = _rows()
    return np.array([cknna(x, z)]), np.array([_cknna(x, z)])


ITEMS |= {"scores of rows: fvu, mae, cs, l0": _row_scores, "recovery, k below and above the trained one": _recovery}
ITEMS |= {"CKNNA": _codes_against_inputs}
