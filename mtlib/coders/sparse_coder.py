"""One class for every sparse coder of the repo: autoencoders (y = x) and transcoders (y = the classifier's hidden layer).

    z_pre = (x - b_pre) @ W_enc + b_enc                        # (B, S)
    z     = selection(activation(z_pre))                       # (B, S)
    y_l   = z[:, :m_l] @ W_dec_l + b_dec_l                     # (B, O), level l of L

The papers' h_2 is x, h_1 is y. Weights are trained in the coder's own units, where input and target are centred and
scaled by statistics of the train rows that are saved with it; the properties W_enc, b_enc, b_pre, W_dec and b_dec give
them in the units of x and y, so that the lines above hold as they stand.

Learned JumpReLU thresholds: theta itself is the parameter, in float32, kept >= 0 after each step, with a learning rate
of its own (train.TrainConfig.theta_lr). Adam then moves it by up to that rate per step whatever the size of its
gradient; as log(theta) (theta_log) it would move by a share of itself and take 69,000 steps at 1e-4 from 0.001 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mtlib.coders import losses, sparsity
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.fast.terms import fast_codes
from mtlib.coders.files import HubModel
from mtlib.coders.scaling import error_frame, gain_and_shift, scaled

__all__ = ["CoderOutput", "SparseCoder", "SparseCoderConfig"]


class CoderOutput(NamedTuple):
    """Codes and the reconstruction of every level."""

    z: Tensor  # (B, S)
    y_hats: list[Tensor]  # L of (B, O)


class SparseCoder(nn.Module, HubModel):
    """A sparse coder with the settings of `config`; weights drawn from `seed`.

    Inference (`encode`, `forward`) uses frozen thresholds only, unless config.inference = batch; the batch-wise selection
    is inside `loss`.
    """

    fast = "auto"  # "auto": the loss from the active latents alone where that pays (fast/); "off": always plain
    config_class = SparseCoderConfig

    def __init__(self, config: SparseCoderConfig, seed: int = 0):
        super().__init__()
        self.config = c = config
        g = torch.Generator().manual_seed(seed)
        D, S, d_out = c.d_in, c.n_latents, c.d_out
        directions = normalize(torch.randn(S, D, generator=g), dim=-1)
        columns = (c.init_norm or math.sqrt(2 * D / S)) * directions.T  # of norm 1: z_pre has the input's scale
        self.enc = nn.Parameter(columns)  # (D, S)
        self.enc_bias = nn.Parameter(torch.zeros(S), requires_grad=c.encoder_bias)
        self.pre_bias = nn.Parameter(torch.zeros(D)) if c.pre_bias == "own" else None
        n_decoders = 1 if c.decoder == "shared" else len(c.levels)
        same = c.target == "x" and c.init == "transposed"
        rows = (c.init_norm or 1.0) * (directions if same else normalize(torch.randn(S, d_out, generator=g), dim=-1))
        heights = [S] if c.decoder == "shared" else list(c.levels)
        own = [nn.Parameter(rows[:m].clone(), requires_grad=not c.frozen_decoder) for m in heights]
        self.dec = nn.ParameterList([] if c.tied else own)
        biases = [nn.Parameter(torch.zeros(d_out)) for _ in range(n_decoders)] if c.decoder_bias else []
        self.dec_bias = nn.ParameterList(biases)
        start = math.log(c.theta_init) if c.theta_log else c.theta_init
        self.theta = nn.Parameter(torch.full((S,), start)) if c.activation == "jumprelu" else None
        for name, value in {
            "x_mean": torch.zeros(D),
            "x_scale": torch.ones(D),
            "y_mean": torch.zeros(d_out),
            "y_scale": torch.ones(d_out),
            "threshold": torch.zeros(S),  # frozen selection at inference (selection = none or batch_topk)
            "threshold_steps": torch.zeros((), dtype=torch.int64),
            "rows_since_fired": torch.zeros(S, dtype=torch.int64),
        }.items():
            self.register_buffer(name, value)
        self.compute_dtype: torch.dtype | None = None  # of the products with enc and dec; None = that of the weights
        self.most_dead: int | None = None  # no more latents are dead in the next loss (asked on a GPU); None: unknown
        self.batch = losses.WHOLE  # the rows of a training step: all here, or shared among processes (parallel.py)

    # ---- the coder in the units of x and y -------------------------------------------------------------------------

    @property
    def W_enc(self) -> Tensor:
        """(D, S): one column per latent, in units of 1 / x."""
        return self.enc / self.x_scale[:, None]

    @property
    def b_enc(self) -> Tensor:
        """(S,)."""
        return self.enc_bias

    @property
    def b_pre(self) -> Tensor:
        """(D,): what is subtracted from x, in units of x."""
        bias = self._input_bias()
        return self.x_mean if bias is None else self.x_mean + bias * self.x_scale

    @property
    def W_dec(self) -> Tensor:
        """(S, O): the last level's decoder, one row per latent, in units of y."""
        return self._decoder(-1) * self.y_scale

    @property
    def b_dec(self) -> Tensor:
        """(O,): the last level's bias, in units of y."""
        bias = self._bias(-1)
        return self.y_mean if bias is None else self.y_mean + bias * self.y_scale

    @property
    def n_latents(self) -> int:
        return self.config.n_latents

    @property
    def aux_k(self) -> int:
        """How many dead latents of a row try to explain its error."""
        return min(self.config.aux_k or max(1, self.config.d_in // 2), self.config.n_latents)

    @property
    def dead(self) -> Tensor:
        """(S,) bool: latents that have not fired for `dead_after` rows of training."""
        return self.rows_since_fired >= self.config.dead_after

    @property
    def thresholds(self) -> Tensor | None:
        """(S,): JumpReLU's theta, with the gradient of what is learned."""
        if self.theta is None or not self.config.theta_log:
            return self.theta
        return self.theta - self.theta.detach() + self.theta.detach().exp()

    def _decoder(self, level: int) -> Tensor:
        if self.config.tied:
            return self.enc.T
        return self.dec[0 if self.config.decoder == "shared" else level]

    def _bias(self, level: int) -> Tensor | None:
        if not self.config.decoder_bias:
            return None
        return self.dec_bias[0 if self.config.decoder == "shared" else level]

    def _input_bias(self) -> Tensor | None:
        """(D,): what is subtracted from the centred input, in the coder's units."""
        return self._bias(0) if self.config.pre_bias == "decoder" else self.pre_bias

    def _encoder_bias(self) -> Tensor:
        """(S,): (x - b) @ W + b_enc = x @ W + (b_enc - b @ W), so that no gradient of x's size is needed."""
        bias = self._input_bias()
        return self.enc_bias if bias is None else self.enc_bias - bias @ self.enc

    def _product(self, a: Tensor, w: Tensor) -> Tensor:
        if self.compute_dtype is None:
            return a.to(w.dtype) @ w
        return (a.to(self.compute_dtype) @ w.to(self.compute_dtype)).to(w.dtype)

    # ---- inference -------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Codes of x; each row's code depends on that row alone, unless config.inference = batch.

        Args: x (B, D), taken as float32, as the embeddings are stored. Returns: (B, S) >= 0.
        Raises: ValueError naming expected and actual shape.
        """
        z_pre = self._pre(x)
        return self._select(self._activate(z_pre), batchwise=self.config.inference == "batch")

    def encode_all(self, x: Tensor) -> Tensor:
        """Codes (B, S) of x (B, D) without the selection: all that the activation lets pass, as MSAE's authors export them."""
        return sparsity.soft_cap(self._activate(self._pre(x)), self.config.soft_cap)

    def decode(self, z: Tensor, level: int = -1, x: Tensor | None = None) -> Tensor:
        """Reconstruction of y by one level.

        Args: z (B, S) codes; level: 0 .. L-1, or negative from the end; x (B, D): the rows that were coded, needed with
            unit_rows or scale = rows, to put back what was taken off each row (without x: an average row's).
        Returns: (B, O).
        Raises: ValueError naming expected and actual shape; IndexError for a level that does not exist.
        """
        if z.shape[-1] != self.config.n_latents:
            raise ValueError(f"decode: z has shape {tuple(z.shape)}, expected (B, {self.config.n_latents})")
        return self._to_y(self._decode_level(z, range(len(self.config.levels))[level]), x)

    def forward(self, x: Tensor) -> CoderOutput:
        """Codes and every level's reconstruction. Args: x (B, D). Returns: CoderOutput(z (B, S), L of (B, O))."""
        z = self.encode(x)
        return CoderOutput(z, [self._to_y(y, x) for y in self._decode_levels(z)])

    def _pre(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[-1] != self.config.d_in:
            raise ValueError(f"encode: x has shape {tuple(x.shape)}, expected (B, {self.config.d_in})")
        x = self._inputs(x).flatten(0, -2)
        z_pre = self._affine(x, self.enc, self._encoder_bias())
        return z_pre.relu() if self.config.relu_first else z_pre

    def _affine(self, a: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        """a @ w + bias; the sum is float32 also where the product is not."""
        if self.compute_dtype is None:
            return torch.addmm(bias, a, w)
        return a.to(self.compute_dtype) @ w.to(self.compute_dtype) + bias

    def _inputs(self, x: Tensor) -> Tensor:
        return scaled(x.to(self.enc.dtype), self.x_mean, self.x_scale, self.config.scale, self.config.unit_rows)

    def _compared(self, x: Tensor) -> Tensor:
        """The rows whose cosines MonoLoss compares."""
        return self._inputs(x) if self.config.mono_rows == "own" else x

    def _activate(self, z_pre: Tensor, theta: Tensor | None = None) -> Tensor:
        """Activation of z_pre (..., S); or of values (n,) with the theta (n,) of their latents."""
        c, theta = self.config, self.thresholds if theta is None else theta
        if c.activation == "relu":
            return z_pre.relu()
        if c.activation == "jumprelu_fixed":
            return sparsity.jumprelu_fixed(z_pre, c.gamma, c.beta)
        if c.penalty.startswith("l0_rectangle"):
            return sparsity.jumprelu(z_pre, theta, c.bandwidth)
        return z_pre * (z_pre > theta)

    def _select(self, z: Tensor, batchwise: bool) -> Tensor:
        return sparsity.soft_cap(self._kept(z, batchwise), self.config.soft_cap)

    def _kept(self, z: Tensor, batchwise: bool) -> Tensor:
        c = self.config
        if c.selection in sparsity.ROW_WISE:
            return sparsity.ROW_WISE[c.selection](z, c)
        if c.selection == "batch_topk" and batchwise:
            return self._batch_topk(z)
        return z if c.selection == "none" and batchwise else sparsity.above(z, self.threshold)

    def _batch_topk(self, z: Tensor) -> Tensor:
        """Batch-wise selection of every block; the frozen threshold follows the smallest value kept (training only)."""
        blocks = zip(self.config.ks, self.config.blocks, strict=True)
        parts, kept = zip(*(self.batch.batch_topk(z[:, a:b], k) for k, (a, b) in blocks), strict=True)
        self._follow(kept)
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _follow(self, kept: Sequence[Tensor]) -> None:
        """Move the frozen threshold of every block towards the smallest value kept there; in train mode only."""
        if self.training:
            now = torch.cat([value.expand(b - a) for value, (a, b) in zip(kept, self.config.blocks, strict=True)])
            rate = 1 / (self.threshold_steps + 1).clamp(max=20)  # a plain mean at first, then the last 20 steps or so
            self.threshold += rate * (now - self.threshold)
            self.threshold_steps += 1

    def _decode_level(self, z: Tensor, level: int) -> Tensor:
        c, m = self.config, self.config.levels[level]
        if c.selection == "nested_topk" and level < len(c.levels) - 1:  # the last takes all codes that it is given
            z = sparsity.topk(z, c.ks[level])
        return self._with_bias(level, self._product(z[..., :m], self._decoder(level)[:m]))

    def _with_bias(self, level: int, y: Tensor) -> Tensor:
        bias = self._bias(level)
        return y if bias is None else y + bias

    def _decode_levels(self, z: Tensor) -> list[Tensor]:
        """All levels in the coder's units; a shared prefix decoder adds one block at a time."""
        c = self.config
        if c.decoder != "shared" or c.selection == "nested_topk":
            return [self._decode_level(z, level) for level in range(len(c.levels))]
        w, bias = self._decoder(0), self._bias(0)
        y_hats: list[Tensor] = []
        for a, b in zip((0, *c.levels[:-1]), c.levels, strict=True):
            y = self._product(z[..., a:b], w[a:b])
            before = y_hats[-1] if y_hats else bias
            y_hats.append(y if before is None else y + before)
        return y_hats

    def _to_y(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        gain, shift = gain_and_shift(self, x)
        return y * gain + shift

    # ---- training --------------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, penalty_scale: Tensor | float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a batch; in train mode it also moves the running threshold and the dead counters.

        Args: x (B, D), y (B, O) in their own units; penalty_scale multiplies what lowers the L0 (L0 steering):
                penalty_weight without a selection, mono_weight with one.
        Returns: () loss; detached parts: loss, reconstruction, penalty, mono, aux, l0, error (squared, summed, last level).
            Of a batch that processes share: this one's part of the loss, whose gradients add up; parts of the whole.
        """
        c, rows = self.config, self.batch.rows(len(x))
        if y.shape != (len(x), c.d_out):
            raise ValueError(f"loss: target has shape {tuple(y.shape)}, expected ({len(x)}, {c.d_out})")
        frame = error_frame(self, y)
        codes = (fast_codes(self, x) if self.fast == "auto" else None) or losses.DenseCodes(self, x)
        fired, n_fired = codes.fired()
        since = (self.rows_since_fired + rows).masked_fill_(self.batch.sum(fired), 0)
        dead = self.dead if c.aux_error == "variance" else since >= c.dead_after  # the others count this batch
        parts = losses.terms(self, frame, codes, dead, penalty_scale)
        total = torch.stack(tuple(parts.values())).sum()
        if self.training:
            self.rows_since_fired.copy_(since)
        error = frame.target - frame.brought(codes.y_hats[-1])
        parts |= {"loss": total, "l0": n_fired / rows, "error": error.detach().square().sum()}
        return total, {name: self.batch.sum(value.detach()) for name, value in parts.items()}
