"""Settings of a sparse coder, checked when made. Every published method is one of these (presets.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from mtlib.coders.checked import check

ACTIVATIONS = ("relu", "jumprelu_fixed", "jumprelu")
SELECTIONS = ("none", "topk", "block_topk", "batch_topk", "nested_topk")
SCALES = ("none", "rms", "std", "rows")
PENALTIES = ("none", "l1_mean", "l1_sum", "l0_sigmoid", "l0_rectangle")


@dataclass(frozen=True)
class SparseCoderConfig:
    """One member of the family of sparse coders.

    z_pre = (x - b_pre) @ W_enc + b_enc;  z = selection(activation(z_pre));  y_l = z[:, :m_l] @ W_dec_l + b_dec_l
    loss  = sum_l w_l * mse(y_l, y) + penalty + mono_weight * (1 - MonoScore) + aux_weight * AuxK

    Errors and penalties are in the coder's own units: input and target after `centre` and `scale`. With scale = rows a
    row's mean and spread are no part of its code: to rebuild x, `decode` is given x and puts them back.

    Raises: ValueError naming the field, its value and its range.
    """

    d_in: int
    d_out: int
    n_latents: int
    target: str = "x"  # "x": an autoencoder; "y": a transcoder to the classifier's hidden layer
    activation: str = "relu"  # relu | jumprelu_fixed | jumprelu (theta learned per latent)
    gamma: float = 1.0  # jumprelu_fixed: place of the jump
    beta: float = 1.0  # jumprelu_fixed: height of the jump
    theta_init: float = 1e-3  # jumprelu: first value of every threshold
    bandwidth: float = 1e-3  # jumprelu: width of the gradient estimate around a threshold
    selection: str = "topk"  # none | topk | block_topk | batch_topk | nested_topk
    levels: tuple[int, ...] = ()  # m_l, growing, the last = n_latents; nested_topk: all = n_latents; () = one level
    ks: tuple[int, ...] = ()  # one per level (block_topk, nested_topk), else one in all (batch_topk: either)
    level_weights: tuple[float, ...] = ()  # w_l; () = equal, summing to 1
    decoder: str = "own"  # own: one per level | shared: one, whose first m_l rows decode level l
    decoder_bias: bool = True
    pre_bias: str = (
        "none"  # b_pre beyond centring: none | own: learned | decoder: the decoder's bias, subtracted from x
    )
    tied: bool = False  # W_dec = W_enc transposed
    unit_norm_decoder: bool = False  # decoder rows (one per latent) have norm 1 after every step
    penalty: str = "none"  # l1_mean: mean |z| | l1_sum: sum |z| per row | l0_sigmoid, l0_rectangle: surrogate L0
    penalty_weight: float = 0.0
    mono_weight: float = 0.0
    aux_weight: float = 0.0
    aux_k: int = 0  # dead latents that try to explain the error; 0 = half the input width
    dead_after: int = 20_000  # rows without firing after which a latent counts as dead
    centre: str = "none"  # none | mean: subtract the train mean of the input
    scale: str = (
        "none"  # none | rms: one number, mean square 1 | std: per unit | rows: each row by its own mean and spread
    )
    target_centre: str = "none"  # of y; a target x is treated as the input
    target_scale: str = "none"  # none | rms | std | logit: each unit in proportion to its weight in the logit

    def __post_init__(self):
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 (a frozen dataclass)
        for name in ("levels", "ks", "level_weights"):
            set_(name, tuple(getattr(self, name)))
        nested = self.selection == "nested_topk"
        if not self.levels:
            set_("levels", (self.n_latents,) * (max(len(self.ks), 1) if nested else 1))
        if not self.level_weights:
            set_("level_weights", (1.0 / len(self.levels),) * len(self.levels))
        if self.target == "x":
            set_("target_centre", self.centre)
            set_("target_scale", self.scale)
        self._check_choices()
        self._check_sizes()

    def _check_choices(self) -> None:
        for name, allowed in {
            "target": ("x", "y"),
            "activation": ACTIVATIONS,
            "selection": SELECTIONS,
            "decoder": ("own", "shared"),
            "pre_bias": ("none", "own", "decoder"),
            "penalty": PENALTIES,
            "centre": ("none", "mean"),
            "scale": SCALES,
            "target_centre": ("none", "mean"),
            "target_scale": SCALES if self.target == "x" else ("none", "rms", "std", "logit"),
        }.items():
            check(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        learned = self.activation == "jumprelu"
        check(self, "penalty", learned or not self.penalty.startswith("l0"), "l0_* only with activation = jumprelu")
        check(self, "decoder", self.decoder == "shared" or self.selection != "nested_topk", "shared for nested_topk")
        biased = self.target == "x" and self.decoder_bias and (len(self.levels) == 1 or self.decoder == "shared")
        check(
            self, "pre_bias", self.pre_bias != "decoder" or biased, "none or own unless one decoder with bias gives x"
        )
        one = len(set(self.levels)) == 1 and self.d_in == self.d_out
        check(self, "tied", not self.tied or one, "false unless d_in = d_out and there is one decoder")

    def _check_sizes(self) -> None:
        for name in ("d_in", "d_out", "n_latents", "dead_after"):
            check(self, name, getattr(self, name) >= 1, ">= 1")
        for name in ("gamma", "theta_init", "penalty_weight", "mono_weight", "aux_weight", "aux_k"):
            check(self, name, 0 <= getattr(self, name) < float("inf"), "finite and >= 0")
        check(self, "bandwidth", 0 < self.bandwidth < float("inf"), "finite and > 0")
        check(self, "d_out", self.target == "y" or self.d_out == self.d_in, f"d_in = {self.d_in} when target = x")
        S, L = self.n_latents, len(self.levels)
        if self.selection == "nested_topk":
            check(self, "levels", all(m == S for m in self.levels), f"all n_latents = {S} for nested_topk")
            growing = all(a < b for a, b in pairwise(self.ks))
            check(self, "ks", growing, "growing for nested_topk")
        else:
            growing = all(a < b for a, b in pairwise((0, *self.levels)))
            check(self, "levels", growing and self.levels[-1] == S, f"growing, ending in n_latents = {S}")
        counts = {"none": (0,), "topk": (1,), "batch_topk": (1, L)}.get(self.selection, (L,))
        check(self, "ks", len(self.ks) in counts, f"{' or '.join(map(str, counts))} numbers for {self.selection}")
        for k, width in zip(self.ks, self.k_widths, strict=True):
            check(self, "ks", 1 <= k <= width, f"between 1 and the {width} latents it selects from")
        check(self, "level_weights", len(self.level_weights) == L, f"{L} numbers, one per level")
        check(self, "level_weights", min(self.level_weights) >= 0 < sum(self.level_weights), ">= 0 and not all 0")

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
        from mtlib.coders.presets import scale_ks, within

        if not self.ks:
            return self
        ks = scale_ks(self.ks, 1.0, l0, self.selection == "nested_topk", self.n_latents)
        if self.selection != "nested_topk":
            return replace(self, ks=within(ks, self.k_widths))
        weights = self.level_weights[-len(ks) :]
        weights = tuple(w / sum(weights) for w in weights)
        return replace(self, ks=ks, levels=(self.n_latents,) * len(ks), level_weights=weights)

    @staticmethod
    def preset(name: str, d_in: int, d_out: int, **overrides) -> SparseCoderConfig:
        """A published method, or ours, at any size; see `presets.coder_settings`. An autoencoder takes d_out = d_in."""
        from mtlib.coders.presets import coder_settings

        settings = coder_settings(name, **overrides)
        d_out = d_out if settings.get("target") == "y" else d_in
        return SparseCoderConfig(d_in=d_in, d_out=d_out, **settings)
