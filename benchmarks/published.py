"""The training steps of MSAE, MonoLoss and Matryoshka Transcoders, rewritten plainly from their papers (no benchmark itself).

Each function returns (loss: () -> scalar, named parameters). Dense codes, autograd, one product per level, as published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _keep(z: Tensor, k: int) -> Tensor:
    """The k largest of each row, scattered into a dense array."""
    values, indices = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter_(-1, indices, values)


def _coder(D: int, S: int, O: int) -> nn.ParameterDict:  # noqa: E741
    enc = nn.init.kaiming_uniform_(torch.empty(D, S))
    dec = enc.T.clone() if D == O else nn.init.kaiming_uniform_(torch.empty(S, O))
    return nn.ParameterDict({"enc": enc, "enc_bias": torch.zeros(S), "dec": dec, "dec_bias": torch.zeros(O)})


def msae(x: Tensor, S: int, ks: tuple[int, ...]):
    """MSAE (arXiv 2502.20578): every k cuts the codes anew and decodes them whole; L1-normalised weights, MSE."""
    p = _coder(x.shape[1], S, x.shape[1])

    def loss() -> Tensor:
        z = F.relu((x - p["dec_bias"]) @ p["enc"] + p["enc_bias"])
        return sum(F.mse_loss(_keep(z, k) @ p["dec"] + p["dec_bias"], x) / len(ks) for k in ks)

    return loss, list(p.named_parameters())


def mono_score(e: Tensor, z: Tensor, eps: float = 1e-8) -> Tensor:
    """MonoLoss's linear MonoScore (arXiv 2602.12403): e (N, D) unit rows, z (N, S). Returns: (S,)."""
    a = (z - z.min(0).values) / (z.max(0).values - z.min(0).values).clamp_min(eps)  # (N, S)
    total, squares = a.sum(0), a.square().sum(0)
    return ((a.T @ e).square().sum(1) - squares) / (total.square() - squares).clamp_min(eps)


def mono_score_pairwise(e: Tensor, z: Tensor, eps: float = 1e-8) -> Tensor:
    """Its definition: the mean cosine of all pairs of rows, weighted by the product of their activations. Returns: (S,)."""
    a = (z - z.min(0).values) / (z.max(0).values - z.min(0).values).clamp_min(eps)
    cosine = (e @ e.T).fill_diagonal_(0)
    scores = [
        ((a_s[:, None] * a_s * cosine).sum() / (a_s.sum() ** 2 - a_s.square().sum()).clamp_min(eps)) for a_s in a.T
    ]
    return torch.stack(scores)


def monoloss(x: Tensor, S: int, k: int, weight: float = 0.09):
    """MonoLoss TopK on unit rows x: layer norm, tied weights, NMSE, AuxK of dead latents (none yet), and the score.

    weight 0 leaves out what MonoLoss adds: the score and AuxK. Its unit-norm pass over the rows is not part of the loss.
    """
    D, e = x.shape[1], F.normalize(x, dim=-1)
    p = nn.ParameterDict({"enc": F.normalize(torch.randn(S, D), dim=-1)})
    p |= {"bias": torch.zeros(S), "pre_bias": torch.zeros(D)}
    dead = torch.zeros(S, dtype=torch.bool)

    def nmse(y: Tensor, target: Tensor) -> Tensor:
        return ((y - target).square().mean(1) / target.square().mean(1)).mean()

    def loss() -> Tensor:
        spread, mean = torch.std_mean(x, dim=1, keepdim=True)
        z_pre = ((x - mean) / (spread + 1e-5) - p["pre_bias"]) @ p["enc"].T + p["bias"]
        z = F.relu(_keep(z_pre, k))
        y = (z @ p["enc"] + p["pre_bias"]) * spread + mean
        total = nmse(y, x)
        if weight:
            others = F.relu(_keep(z_pre.masked_fill(~dead, -torch.inf), k))
            aux = (others @ p["enc"] + p["pre_bias"]) * spread + mean
            total = total + nmse(aux, (x - y + p["pre_bias"]).detach()) / 32 + weight * (1 - mono_score(e, z).mean())
        return total

    return loss, list(p.named_parameters())


def matryoshka_transcoder(
    x: Tensor, y: Tensor, levels: tuple[int, ...], ks: tuple[int, ...], weights: tuple[float, ...]
):
    """Matryoshka Transcoders (arXiv 2511.10094): JumpReLU, top-k of each new block, a decoder per level, L1 0.01."""
    S = levels[-1]
    p = nn.ParameterDict({"enc": nn.init.kaiming_uniform_(torch.empty(x.shape[1], S)), "enc_bias": torch.zeros(S)})
    for level, m in enumerate(levels):
        p[f"dec{level}"] = nn.init.kaiming_uniform_(torch.empty(m, y.shape[1]))
        p[f"dec_bias{level}"] = torch.zeros(y.shape[1])

    def loss() -> Tensor:
        z_pre = x @ p["enc"] + p["enc_bias"]
        z = F.relu(z_pre) + (z_pre > 1).to(z_pre.dtype)
        blocks = zip((0, *levels[:-1]), levels, ks, strict=True)
        z = torch.cat([_keep(z[:, a:b], k) for a, b, k in blocks], 1)
        total = 0.01 * z.abs().mean()
        for level, (m, weight) in enumerate(zip(levels, weights, strict=True)):
            y_hat = z[:, :m] @ p[f"dec{level}"] + p[f"dec_bias{level}"]
            total = total + weight * F.mse_loss(y_hat, y)
        return total

    return loss, list(p.named_parameters())


if __name__ == "__main__":
    print("These are the published steps that `./run_all.sh bench speed` measures.")
