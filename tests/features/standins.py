"""Small exact stand-ins: a coder whose codes are given, and a linear coder, with the attributes of SparseCoder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch


class GivenCodes:
    """A coder whose codes are looked up: column 0 of x is the row number, `codes` is (N, S)."""

    def __init__(self, codes: np.ndarray):
        self.codes = torch.from_numpy(np.asarray(codes, dtype=np.float32))

    def encode(self, x):
        return self.codes[x[:, 0].long()]

    @property
    def W_dec(self) -> torch.Tensor:
        """(S, 1) of zeros: how many latents there are."""
        return torch.zeros(self.codes.shape[1], 1)

    @property
    def x(self) -> np.ndarray:
        """The x that belongs to it, (N, 1)."""
        return np.arange(len(self.codes), dtype=np.float32)[:, None]


class LinearCoder:
    """z = relu(x W_enc + b), y_hat = z W_dec + b_dec."""

    def __init__(self, W_enc, W_dec, b_enc=0.0, b_dec=0.0):
        self.W_enc, self.W_dec = torch.as_tensor(W_enc).float(), torch.as_tensor(W_dec).float()
        self.b_enc, self.b_dec = b_enc, b_dec
        self.config = SimpleNamespace(levels=(len(self.W_dec),))

    def encode(self, x):
        return (x @ self.W_enc + self.b_enc).relu()

    def decode(self, z, level=-1, x=None):
        return z @ self.W_dec + self.b_dec
