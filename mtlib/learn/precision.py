"""In which precision the two large products of a training step run; everything else stays float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mtlib.coders.sparse_coder import SparseCoder


@contextlib.contextmanager
def products_in(coder: SparseCoder, precision: str) -> Iterator[None]:
    """Within the block, the products with the encoder and the decoder run in `precision`.

    bf16 rounds both factors and the product to bfloat16; biases, thresholds, selection, loss, gradients of the weights
    as the optimiser sees them and its state are float32. tf32 has an effect on CUDA devices only.

    Args: precision: float32, tf32 or bf16, as in TrainConfig.
    """
    before = torch.backends.cuda.matmul.allow_tf32, coder.compute_dtype
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    coder.compute_dtype = torch.bfloat16 if precision == "bf16" else None
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, coder.compute_dtype = before
