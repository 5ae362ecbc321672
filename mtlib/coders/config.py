"""Settings of a sparse coder, checked when made. Every published method is one of these (presets.py)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from mtlib.coders import presets
from mtlib.run.params import Settings

# as JSON and YAML have it
_as_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Whole = Annotated[tuple[int, ...], _as_tuple]
Numbers = Annotated[tuple[float, ...], _as_tuple]
# of |z|, summed or averaged over latents, or relative to the input's norm; or a surrogate L0: see losses.penalised
Penalty = Literal["none", "l1_mean", "l1_sum", "l1_relative", "l0_sigmoid", "l0_rectangle", "l0_rectangle_after"]


class SparseCoderConfig(Settings):
    """One member of the family of sparse coders.

    z_pre = (x - b_pre) @ W_enc + b_enc;  z = selection(activation(z_pre));  y_l = z[:, :m_l] @ W_dec_l + b_dec_l
    loss  = sum_l w_l * error(y_l, y) + penalty + mono_weight * (1 - MonoScore) + aux_weight * AuxK

    Errors and penalties are in the coder's own units: input and target after `centre` and `scale`; with unit_rows errors
    are of the rows of norm 1. With unit_rows or scale = rows a row's norm, mean and spread are no part of its code: to
    rebuild x, `decode` is given x and puts them back.

    Raises: ValueError naming the field, its value and its range.
    """

    d_in: int = Field(ge=1)
    d_out: int = Field(ge=1)
    n_latents: int = Field(ge=1)
    target: Literal["x", "y"] = "x"  # x: an autoencoder; y: a transcoder to the classifier's hidden layer
    activation: Literal["relu", "jumprelu_fixed", "jumprelu"] = "relu"  # jumprelu: theta learned per latent
    gamma: float = Field(1.0, ge=0)  # jumprelu_fixed: place of the jump
    beta: float = 1.0  # jumprelu_fixed: height of the jump
    theta_init: float = Field(1e-3, ge=0)  # jumprelu: first value of every threshold
    theta_log: bool = False  # jumprelu: the parameter is log(theta), and gets the gradient of theta (MonoLoss)
    relu_first: bool = False  # jumprelu: of relu(z_pre), so that no window reaches below 0 (MonoLoss)
    bandwidth: float = Field(1e-3, gt=0)  # jumprelu: width of the gradient estimate around a threshold
    selection: Literal["none", "topk", "block_topk", "batch_topk", "nested_topk"] = "topk"
    levels: Whole = ()  # m_l, growing, the last = n_latents; nested_topk: all = n_latents; () = one level
    ks: Whole = ()  # one per level (block_topk, nested_topk), else one in all (batch_topk: either)
    inference: Literal["frozen", "batch"] = "frozen"  # batch: batch_topk lets rows compete in use too, as in training
    level_weights: Numbers = ()  # w_l; () = equal, summing to 1
    decoder: Literal["own", "shared"] = "own"  # own: one per level; shared: one, whose first m_l rows decode level l
    decoder_bias: bool = True
    encoder_bias: bool = True  # False: b_enc stays 0
    pre_bias: Literal["none", "own", "decoder"] = "none"  # b_pre beyond centring; decoder: the decoder's bias
    tied: bool = False  # W_dec = W_enc transposed
    init: Literal["transposed", "independent"] = "transposed"  # an autoencoder's first decoder: its encoder's transpose
    # norm of the first directions; 0: 1 in decoders, sqrt(2 d_in / n_latents) in encoders
    init_norm: float = Field(1.0, ge=0)
    unit_norm_decoder: bool = False  # decoder rows (one per latent) have norm 1 after every step
    # before: between gradients and step, so that the norms after it are only nearly 1
    unit_norm_when: Literal["after", "before"] = "after"
    unit_norm_along: Literal["rows", "columns"] = "rows"  # columns: one per output unit instead
    unit_norm_rescales: bool = False  # the encoder takes up the length that a row loses
    project_gradient: bool = False  # of a decoder row, the part along the row is taken off its gradient
    frozen_decoder: bool = False  # the decoder keeps its first directions
    soft_cap: float = Field(0.0, ge=0)  # codes are soft_cap * tanh(z / soft_cap); 0 = as they are
    error: Literal["mse", "nmse"] = "mse"  # nmse: of each row, over the mean square of its target
    penalty: Penalty = "none"
    penalty_weight: float = Field(0.0, ge=0)
    mono_weight: float = Field(0.0, ge=0)
    mono_rows: Literal["raw", "own"] = "raw"  # whose cosines count; own: of the rows after `centre` and `scale`
    aux_weight: float = Field(0.0, ge=0)
    aux_k: int = Field(0, ge=0)  # dead latents that try to explain the error; 0 = half the input width
    aux_error: Literal["variance", "nmse", "mse"] = "variance"  # see losses.aux
    aux_biased: bool = False  # the decoder's bias on both sides of AuxK, also when no latent is dead (MonoLoss)
    dead_after: int = Field(20_000, ge=1)  # rows without firing after which a latent counts as dead
    # each row of x is first divided by its norm, and errors are of these rows; a run's centre and scale leave them alone
    unit_rows: bool = False
    centre: Literal["none", "mean"] = "none"  # mean: subtract the train mean of the input
    scale: Literal["none", "rms", "std", "rows"] = "none"  # rms: one number; std: per unit; rows: each row by itself
    target_centre: Literal["none", "mean"] = "none"  # of y; a target x is treated as the input
    target_scale: Literal["none", "rms", "std", "rows", "logit"] = "none"  # logit: units by their weight in the logit

    @model_validator(mode="after")
    def _complete(self) -> SparseCoderConfig:
        """Fill in what other fields decide, then check what several of them must agree on."""
        equal = len(self.ks) if self.selection == "nested_topk" and self.ks else 1
        given = {"levels": self.levels or (self.n_latents,) * equal}
        given["level_weights"] = self.level_weights or (1.0 / len(given["levels"]),) * len(given["levels"])
        if self.target == "x":
            given |= dict(target_centre=self.centre, target_scale=self.scale)
        for name, value in given.items():
            object.__setattr__(self, name, value)  # frozen for everyone else
        self._check_choices()
        self._check_sizes()
        return self

    def _must(self, ok: bool, field: str, allowed: str) -> None:
        if not ok:
            raise ValueError(f"{field} = {getattr(self, field)!r}: must be {allowed}")

    def _check_choices(self) -> None:
        learned = self.activation == "jumprelu"
        self._must(learned or not self.penalty.startswith("l0"), "penalty", "l0_* only with activation = jumprelu")
        self._must(self.decoder == "shared" or self.selection != "nested_topk", "decoder", "shared for nested_topk")
        one_decoder = len(self.levels) == 1 or self.decoder == "shared"
        biased = self.target == "x" and self.decoder_bias and one_decoder
        allowed = "none or own unless one decoder with bias gives x"
        self._must(self.pre_bias != "decoder" or biased, "pre_bias", allowed)
        one = len(set(self.levels)) == 1 and self.d_in == self.d_out
        self._must(not self.tied or one, "tied", "false unless d_in = d_out and there is one decoder")
        untied = one_decoder and not self.tied and self.unit_norm_along == "rows"
        allowed = "false unless there is one decoder with rows of norm 1, not tied"
        self._must(not self.unit_norm_rescales or untied, "unit_norm_rescales", allowed)
        own = self.target == "y" and self.target_scale == "rows"
        self._must(not own, "target_scale", "none, rms, std or logit when target = y")
        alone = self.target == "x" and self.centre == "none" and self.scale in ("none", "rows")
        allowed = "false unless target = x, centre = none, scale none or rows"
        self._must(not self.unit_rows or alone, "unit_rows", allowed)
        biased = self.decoder_bias and self.aux_error == "nmse" and self.pre_bias != "own"
        allowed = "false unless there is a decoder bias and aux_error = nmse"
        self._must(not self.aux_biased or biased, "aux_biased", allowed)

    def _check_sizes(self) -> None:
        S, L = self.n_latents, len(self.levels)
        self._must(self.target == "y" or self.d_out == self.d_in, "d_out", f"d_in = {self.d_in} when target = x")
        if self.selection == "nested_topk":
            self._must(all(m == S for m in self.levels), "levels", f"all n_latents = {S} for nested_topk")
            self._must(all(a < b for a, b in pairwise(self.ks)), "ks", "growing for nested_topk")
        else:
            growing = all(a < b for a, b in pairwise((0, *self.levels)))
            self._must(growing and self.levels[-1] == S, "levels", f"growing, ending in n_latents = {S}")
        counts = {"none": (0,), "topk": (1,), "batch_topk": (1, L)}.get(self.selection, (L,))
        self._must(len(self.ks) in counts, "ks", f"{' or '.join(map(str, counts))} numbers for {self.selection}")
        for k, width in zip(self.ks, self.k_widths, strict=True):
            self._must(1 <= k <= width, "ks", f"between 1 and the {width} latents it selects from")
        self._must(len(self.level_weights) == L, "level_weights", f"{L} numbers, one per level")
        weighed = min(self.level_weights) >= 0 < sum(self.level_weights)
        self._must(weighed, "level_weights", ">= 0 and not all 0")

    @property
    def by_row(self) -> bool:
        """Whether each row is standardised by itself, so that x is needed to put back what was taken off."""
        return self.unit_rows or self.target_scale == "rows"

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(first, end) of the latents that each k selects from."""
        if self.selection == "nested_topk" or len(self.ks) <= 1:
            return ((0, self.n_latents),) * max(len(self.ks), 1)
        return tuple(pairwise((0, *self.levels)))

    @property
    def k_widths(self) -> tuple[int, ...]:
        """How many latents each k selects from."""
        return tuple(b - a for a, b in self.blocks)[: len(self.ks)]

    @property
    def l0(self) -> int | None:
        """Latents per row that the selection allows (an upper bound where activations can be 0); None without one."""
        if not self.ks:
            return None
        return self.ks[-1] if self.selection == "nested_topk" else sum(self.ks)

    def with_l0(self, l0: int) -> SparseCoderConfig:
        """The same coder with its k set so that l0 latents per row are selected, shared out over blocks in proportion.

        A block gives no more than it has; the others make up for it. An l0 over n_latents selects them all.

        Without a selection (`none`) nothing changes here: training steers the penalty and calibrates a threshold.
        """
        if not self.ks:
            return self
        if self.selection != "nested_topk":
            return self.with_(ks=presets.shared_out(l0, self.ks, self.k_widths))
        ks = presets.nested_ks(self.ks, l0, self.n_latents)
        weights = self.level_weights[-len(ks) :]
        weights = tuple(w / sum(weights) for w in weights)
        return self.with_(ks=ks, levels=(self.n_latents,) * len(ks), level_weights=weights)

    @staticmethod
    def preset(name: str, d_in: int, d_out: int, l0: int | None = None, **overrides) -> SparseCoderConfig:
        """A published method, or ours, at any size; see `presets.coder_settings`. An autoencoder takes d_out = d_in.

        Args: l0: latents per row, as `with_l0`; None: as published.
        """
        settings = presets.coder_settings(name, **overrides)
        d_out = d_out if settings.get("target") == "y" else d_in
        config = SparseCoderConfig(d_in=d_in, d_out=d_out, **settings)
        return config.with_l0(l0) if l0 else config
