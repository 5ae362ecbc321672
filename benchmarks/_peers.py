"""Training steps of eai-sparsify, overcomplete, sae-lens and dictionary-learning, by their own public classes.

Each function returns method name -> step, on the device of x. "own": the peer's whole training step with its own optimiser, beside the
step with the fused AdamW that everyone gets.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._timing import Step, own_step, training_step


def _both(name: str, loss: Callable[[], Tensor], model: torch.nn.Module) -> dict[str, Step]:
    return {
        name: training_step(loss, model.named_parameters()),
        f"{name} (own optimiser)": own_step(loss, model.parameters()),
    }


def sparsify_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    if x.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its CPU decoder, which is an embedding bag too
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=S, k=k), device=x.device)
    return _both("eai-sparsify", lambda: coder(x).fvu, coder)


def _overcomplete_sae():
    """overcomplete.sae; its figures want a function that matplotlib 3.9 removed, so it is given back first."""
    import matplotlib

    if not hasattr(matplotlib.cm, "get_cmap"):
        matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap
    import overcomplete.sae

    return overcomplete.sae


def _overcomplete(model: torch.nn.Module, x: Tensor) -> dict[str, Step]:
    model.train()
    return _both("overcomplete", lambda: (model(x)[2] - x).square().mean(), model)


def overcomplete_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    return _overcomplete(_overcomplete_sae().TopKSAE(x.shape[1], S, top_k=k, device=str(x.device)), x)


def overcomplete_batch_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    sae = _overcomplete_sae().BatchTopKSAE(x.shape[1], S, top_k=k * len(x), device=str(x.device))
    return _overcomplete(sae, x)


def _sae_lens(kind: str, x: Tensor, density: float = 0.0, **settings) -> dict[str, Step]:
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(d_in=x.shape[1], device=str(x.device), **settings)
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(config)
    if density:
        sae.threshold.data.fill_(_threshold(sae, x, density))
    coefficients = {"l0": 1e-3}
    given = TrainStepInput(x, coefficients, None, 10, False)
    return _both("sae-lens", lambda: sae.training_forward_pass(given).loss, sae)


def sae_lens_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    return _sae_lens("TopK", x, d_sae=S, k=k)


def sae_lens_batch_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    return _sae_lens("BatchTopK", x, d_sae=S, k=k)


def sae_lens_matryoshka(x: Tensor, levels: tuple[int, ...], k: int) -> dict[str, Step]:
    return _sae_lens("MatryoshkaBatchTopK", x, d_sae=levels[-1], k=k, matryoshka_widths=list(levels))


def _threshold(coder: torch.nn.Module, x: Tensor, density: float) -> float:
    """The threshold that `density` of a coder's first pre-activations exceed."""
    z_pre = (x @ coder.W_enc + coder.b_enc).detach().cpu().numpy()
    return float(np.quantile(z_pre, 1 - density))


def sae_lens_jumprelu(x: Tensor, S: int, density: float) -> dict[str, Step]:
    return _sae_lens("JumpReLU", x, density, d_sae=S, jumprelu_bandwidth=1e-3)


def _dictionary_learning(trainer, x: Tensor) -> dict[str, Step]:
    name, counter = "dictionary-learning", iter(range(1, 10**9))
    return {
        name: training_step(lambda: trainer.loss(x, step=next(counter)), trainer.ae.named_parameters()),
        f"{name} (own optimiser)": lambda: trainer.update(next(counter), x),
    }


def _common(x: Tensor, S: int) -> dict:
    return dict(steps=10**6, layer=0, lm_name="none", device=str(x.device), activation_dim=x.shape[1], dict_size=S)


def dictionary_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    return _dictionary_learning(TopKTrainer(k=k, **_common(x, S)), x)


def dictionary_batch_topk(x: Tensor, S: int, k: int) -> dict[str, Step]:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    return _dictionary_learning(BatchTopKTrainer(k=k, **_common(x, S)), x)


def dictionary_matryoshka(x: Tensor, levels: tuple[int, ...], k: int) -> dict[str, Step]:
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    shares = [(b - a) / levels[-1] for a, b in zip((0, *levels[:-1]), levels, strict=True)]
    return _dictionary_learning(MatryoshkaBatchTopKTrainer(k=k, group_fractions=shares, **_common(x, levels[-1])), x)


def dictionary_jumprelu(x: Tensor, S: int, density: float) -> dict[str, Step]:
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    trainer = JumpReluTrainer(**_common(x, S))
    trainer.ae.threshold.data.fill_(_threshold(trainer.ae, x, density))
    return _dictionary_learning(trainer, x)
