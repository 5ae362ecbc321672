"""The codes of a training batch as active pairs, with the same terms of the loss as SparseCoder's plain ones."""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from mtlib.coders import losses, sparsity
from mtlib.coders.fast import select
from mtlib.coders.fast.dense import DecodePrefixes, EncodeDense, top_codes
from mtlib.coders.fast.nested import level_sums, ranked_pairs
from mtlib.coders.fast.pairs import EncodePairs, Pairs, SquaredNorms, SumBags, weight_sums

DENSE = 0.2  # share of active latents above which dense products are quicker on a CPU (measured: between 0.2 and 0.3)
CHUNK = 1 << 24  # values of z_pre held at once: 64 MB; each chunk reads all of enc
SCRATCH = threading.local()  # where they stand, step after step: fresh memory costs as much as half the product
SATURATED = 40.0  # bandwidths from a threshold at which a sigmoid is 0 or 1 in float64


class Found(NamedTuple):
    """What is active in a batch."""

    values: Tensor  # pre-activations (n,) of the pairs; (B, S) all of them, or the codes where there is a slope
    pairs: Pairs | None = None  # None: too many are active
    slope: Tensor | None = None  # (B, S): 1 where a code follows its pre-activation, 0 elsewhere


def fast_codes(coder, x: Tensor) -> PairCodes | losses.DenseCodes | None:
    """The codes of a batch by the fast path, or None where it does not apply: the caller then takes the plain one.

    Args: x (B, D) in its own units.
    """
    if not applies(coder, x):
        return None
    with torch.no_grad():
        inputs, bias = coder._inputs(x), coder._input_bias()
        found = FIND[coder.config.selection](coder, inputs)
        shifted = inputs if bias is None else inputs - bias
    if found is None:
        return None
    (values, pairs, slope), weights = found, (coder.enc, coder.enc_bias, coder._input_bias())
    if values.ndim == 1:
        return PairCodes(coder, x, inputs, pairs, EncodePairs.apply(*weights, values, shifted, pairs))
    values = EncodeDense.apply(*weights, values, shifted, slope)
    if slope is not None:
        levels = range(len(coder.config.levels))
        y_hats = DecodePrefixes.apply(values, *map(coder._decoder, levels))
        return losses.DenseCodes(coder, x, z=values, y_hats=list(map(coder._with_bias, levels, y_hats)))
    if pairs is None:
        return losses.DenseCodes(coder, x, values)
    return PairCodes(coder, x, inputs, pairs, values.gather(1, pairs.item.view(len(x), -1)).flatten())


def applies(coder, x: Tensor) -> bool:
    """Whether a coder's settings and the numbers' types leave something to gain."""
    c = coder.config
    types, host = {x.dtype, coder.enc.dtype}, sparsity.on_cpu(x)
    if types not in ({torch.float32}, {torch.float64}) or x.shape != (len(x), c.d_in) or x.requires_grad or not len(x):
        return False
    if coder.batch.size > 1 or c.aux_biased or (host and coder.compute_dtype is not None):
        return False
    if host and _window_below_zero(coder):
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    if not host:  # what has as many pairs in every batch, so that nobody must count them
        sparse = c.ks and (c.l0 <= DENSE * c.n_latents or c.selection == "nested_topk")
        return bool(sparse) and c.activation != "jumprelu" and (c.decoder == "shared" or len(c.levels) == 1)
    if c.selection in ("topk", "block_topk", "batch_topk"):
        return c.activation != "jumprelu" and (c.l0 <= DENSE * c.n_latents or _dense_codes_do(c))
    return c.selection == "none" or (c.selection == "nested_topk" and c.activation != "jumprelu")


def _window_below_zero(coder) -> bool:
    """Whether the window around some threshold holds the value 0, which then is no inactive pair."""
    c = coder.config
    if c.activation != "jumprelu" or not (c.relu_first or c.penalty == "l0_rectangle_after"):
        return False
    return bool((coder.thresholds < c.bandwidth / 2).any())


def _dense_codes_do(c) -> bool:
    """Whether the codes alone, dense, are enough for the loss, with a decoder of its own for every level."""
    return c.selection != "batch_topk" and c.decoder == "own" and not c.tied and not c.aux_weight and not c.soft_cap


# ---- which pairs ---------------------------------------------------------------------------------------------------


def _pre_chunks(coder, inputs: Tensor, apart: bool = False):
    """z_pre (b, S) of some rows and None; of all rows on a GPU.

    apart, and on a GPU: the product alone, and the bias that is not yet in it, which takes a pass less over (B, S).
    """
    bias, rounding = coder._encoder_bias(), coder.compute_dtype or inputs.dtype
    if not sparsity.on_cpu(inputs):
        yield inputs.to(rounding) @ coder.enc.to(rounding), bias
        return
    n_chunks = -(-len(inputs) * coder.n_latents // CHUNK)
    for part in inputs.chunk(n_chunks):  # alike: a last row alone costs a pass over enc
        out = _scratch(len(part), coder.n_latents, inputs.dtype)
        if apart:
            yield torch.mm(part, coder.enc, out=out), bias
        else:
            yield torch.addmm(bias, part, coder.enc, out=out), None


def _scratch(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) of whatever stood there before; it lasts until this thread asks again."""
    kept = getattr(SCRATCH, "kept", None)
    if kept is None or kept.dtype != dtype or len(kept) < rows * columns:
        kept = SCRATCH.kept = torch.empty(rows * columns, dtype=dtype)
    return kept[: rows * columns].view(rows, columns)


def _pairs(coder, places: Tensor, B: int) -> Pairs:
    row = places // coder.n_latents
    return Pairs(row, places - row * coder.n_latents, B, coder.n_latents, coder.compute_dtype)


# Each finds what is active, or returns None: too few candidates were kept, or a number is not finite.


def _ranks(coder, inputs: Tensor) -> Found | None:
    z_pre = coder._affine(inputs, coder.enc, coder._encoder_bias())
    pairs = ranked_pairs(z_pre, coder.config.ks[-1], coder.compute_dtype)
    if pairs is None or (sparsity.on_cpu(z_pre) and len(pairs.item) > DENSE * z_pre.numel()):
        return pairs and Found(z_pre, pairs)
    return Found(z_pre.gather(1, pairs.item.view(len(inputs), -1)).flatten(), pairs)


def _top_of_rows(coder, inputs: Tensor) -> Found | None:
    c, S = coder.config, coder.n_latents
    if c.l0 > DENSE * S:
        z = torch.addmm(coder._encoder_bias(), inputs, coder.enc).relu_()
        slope = top_codes(z, c.blocks, c.ks)
        if slope is not None and c.activation == "jumprelu_fixed":
            z.add_(torch.gt(z, c.gamma, out=torch.empty_like(z)), alpha=c.beta)
        return slope if slope is None else Found(z, slope=slope)
    latents, values = [], []
    apart = select.one_pass(inputs, len(inputs) * S, [b - a for a, b in c.blocks], c.ks) is not None
    for z, bias in _pre_chunks(coder, inputs, apart):
        blocks = zip(c.blocks, c.ks, strict=True)
        own = [a + select.top_rows(z[:, a:b], k, None if bias is None else bias[a:b]) for (a, b), k in blocks]
        latent = torch.cat(own, 1)  # (b, l0)
        latents.append(latent)
        value = z.gather(1, latent)
        values.append(value if bias is None else value + bias[latent])
    item = torch.cat(latents).flatten()
    row = torch.arange(len(inputs), device=item.device)[:, None].expand(-1, c.l0).flatten()
    return Found(torch.cat(values).flatten(), Pairs(row, item, len(inputs), S, coder.compute_dtype))


def _top_of_batch(coder, inputs: Tensor) -> Found | None:
    c, B, S = coder.config, len(inputs), coder.n_latents
    if not sparsity.on_cpu(inputs):
        z, places = coder._affine(inputs, coder.enc, coder._encoder_bias()), []
        for (a, b), k in zip(c.blocks, c.ks, strict=True):
            at = z[:, a:b].flatten().topk(k * B, sorted=False).indices
            places.append(at + at // (b - a) * (S - b + a) + a)
        places = torch.cat(places).sort().values
        return Found(z.flatten().index_select(0, places), _pairs(coder, places, B))
    bound, found, values, start = None, [], [], 0
    for z, _ in _pre_chunks(coder, inputs):
        bound = select.sampled_bound(z, c.blocks, c.ks) if bound is None else bound
        places = select.places_above(z, bound)
        found.append(places + start * S)
        values.append(z.flatten().index_select(0, places))
        start += len(z)
    places, values = torch.cat(found), torch.cat(values)
    pairs = _pairs(coder, places, B)
    kept = torch.zeros_like(places, dtype=torch.bool)
    for (a, b), k in zip(c.blocks, c.ks, strict=True):
        own = select.true_places((pairs.item >= a) & (pairs.item < b)) if len(c.ks) > 1 else slice(None)
        best = select.top_batch(values[own], k * B, complete=not bound[a])
        if best is None:
            return None
        kept[own] = best
    kept = select.true_places(kept)
    return Found(values.index_select(0, kept), _pairs(coder, places.index_select(0, kept), B))


def _above(coder, inputs: Tensor) -> Found:
    c = coder.config
    z_pre = _scratch(len(inputs), coder.n_latents, inputs.dtype)
    torch.addmm(coder._encoder_bias(), inputs, coder.enc, out=z_pre)
    margin = SATURATED * c.bandwidth if c.penalty == "l0_sigmoid" else 0.0
    margin = c.bandwidth / 2 if c.penalty.startswith("l0_rectangle") else margin
    bound = coder.thresholds - margin if c.activation == "jumprelu" else 0.0
    places = select.places_above(z_pre, bound)
    if len(places) > DENSE * z_pre.numel():
        return Found(z_pre.clone())
    return Found(z_pre.flatten().index_select(0, places), _pairs(coder, places, len(inputs)))


FIND = {"none": _above, "topk": _top_of_rows, "block_topk": _top_of_rows}
FIND |= {"batch_topk": _top_of_batch, "nested_topk": _ranks}

# ---- what follows from them ----------------------------------------------------------------------------------------


class PairCodes:
    """`losses.DenseCodes` from the active pairs alone: x (B, D), inputs (B, D) of the encoder, pre (n,) with gradient."""

    def __init__(self, coder, x: Tensor, inputs: Tensor, pairs: Pairs, pre: Tensor):
        self.coder, self.x, self.inputs, self.pairs, self.pre = coder, x, inputs, pairs, pre
        self.theta = coder.thresholds.index_select(0, pairs.item) if coder.theta is not None else None
        values = coder._activate(pre, self.theta)
        self.z = sparsity.soft_cap(values, coder.config.soft_cap)
        if coder.config.selection == "batch_topk":
            coder._follow(self._smallest(values.detach()))
        self.y_hats = self._decode_levels()

    def penalty(self) -> Tensor:
        c, B = self.coder.config, self.pairs.n_bags
        size = self.inputs.norm(dim=-1).index_select(0, self.pairs.bag) if c.penalty == "l1_relative" else None
        total = losses.penalised(c.penalty, self.pre, self.z, self.theta, c.bandwidth, size).sum()
        return total / (B * c.n_latents if c.penalty == "l1_mean" else B)

    def mono(self) -> Tensor:
        return losses.mono_loss(*mono_scores(self.coder._compared(self.x), self.pairs, self.z))

    def aux(self, error: Tensor, dead: Tensor, frame: losses.Frame) -> Tensor:
        """A small dense coder of the dead latents alone; no work when none is dead.

        On a GPU of as many latents as may be dead, the dead ones among them.
        """
        coder, host = self.coder, sparsity.on_cpu(dead)
        most = coder.n_latents if coder.most_dead is None else coder.most_dead
        places = select.true_places(dead) if host else dead.int().topk(most).indices
        if not len(places):
            return error.new_zeros(())
        enc, bias = coder.enc.index_select(1, places), coder._encoder_bias().index_select(0, places)
        z = coder._affine(self.inputs, enc, bias).relu()  # (B, n_dead)
        z = z if host else z * dead.index_select(0, places)
        error_hat = coder._product(sparsity.topk(z, coder.aux_k), coder._decoder(-1).index_select(0, places))
        return losses.aux(error, error_hat * frame.gain, dead, kind=coder.config.aux_error)

    def fired(self) -> tuple[Tensor, Tensor]:
        active = self.z.detach() != 0
        return weight_sums(self.pairs.item, active.to(self.z.dtype), self.coder.n_latents) > 0, active.sum()

    def _smallest(self, values: Tensor) -> list[Tensor]:
        """The smallest of the values (n,) kept in every block; 0 when fewer than its share are positive."""
        c, item, kept = self.coder.config, self.pairs.item, []
        for (a, b), k in zip(c.blocks, c.ks, strict=True):
            own = (item >= a) & (item < b)
            least = torch.where(own, values, torch.inf).amin() if len(values) else values.new_zeros(())
            kept.append(torch.where(own.sum() == k * self.pairs.n_bags, least, 0))
        return kept

    def _decode_levels(self) -> list[Tensor]:
        coder, c, pairs, L = self.coder, self.coder.config, self.pairs, len(self.coder.config.levels)
        if c.selection == "nested_topk":
            return [coder._with_bias(0, y) for y in level_sums(pairs, self.z, coder._decoder(0), c.ks)]
        if c.decoder == "own":
            return [coder._with_bias(level, self._prefix(coder._decoder(level))) for level in range(L)]
        block = sum(((pairs.item >= m).long() for m in c.levels[:-1]), torch.zeros_like(pairs.item))
        blocks = Pairs(pairs.bag * L + block, pairs.item, pairs.n_bags * L, pairs.n_items, pairs.rounding)
        y_hats: list[Tensor] = []
        for y in SumBags.apply(self.z, coder._decoder(0), blocks).view(pairs.n_bags, L, -1).unbind(1):
            y_hats.append(y + y_hats[-1] if y_hats else coder._with_bias(0, y))
        return y_hats

    def _prefix(self, decoder: Tensor) -> Tensor:
        """Decode the first m latents by a decoder (m, O)."""
        pairs, m = self.pairs, len(decoder)
        if m == pairs.n_items:
            return SumBags.apply(self.z, decoder, pairs)
        own = select.true_places(pairs.item < m)
        pairs = Pairs(pairs.bag.index_select(0, own), pairs.item.index_select(0, own), pairs.n_bags, m)
        return SumBags.apply(self.z.index_select(0, own), decoder, pairs)


def mono_scores(x: Tensor, pairs: Pairs, z: Tensor) -> tuple[Tensor, Tensor]:
    """`losses.mono_scores` from the pairs: x (B, D) inputs, z (n,) >= 0 the values of the pairs, all others 0."""
    S = pairs.n_items
    e = torch.nn.functional.normalize(x, dim=-1, eps=losses.EPS)
    none, values = z.new_zeros(S), z.detach()
    everywhere = weight_sums(pairs.item, torch.ones_like(values), S) == pairs.n_bags
    high = none.scatter_reduce(0, pairs.item, values, "amax")
    low = none.scatter_reduce(0, pairs.item, values, "amin", include_self=False).where(everywhere, none)
    high, low = _shared(pairs.item, z, high), _shared(pairs.item, z, low)
    a = (z - low.index_select(0, pairs.item)) / (high - low + losses.EPS).index_select(0, pairs.item)
    total, squares = weight_sums(pairs.item, a, S), weight_sums(pairs.item, a.square(), S)
    return losses.score_of_sums(SquaredNorms.apply(a, e, pairs), total, squares)


def _shared(item: Tensor, z: Tensor, extreme: Tensor) -> Tensor:
    """`extreme` (S,) of the values of each item, its gradient shared by the values that reach it, as amin and amax do."""
    reach = (z.detach() == extreme.index_select(0, item)).to(z.dtype)
    count = weight_sums(item, reach, len(extreme)).clamp_min(1)
    return torch.where(extreme > 0, weight_sums(item, z * reach, len(extreme)) / count, extreme)
