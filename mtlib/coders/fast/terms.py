"""The terms of a training loss from the active pairs: the same parts as SparseCoder's plain loss."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlib.coders import losses, sparsity
from mtlib.coders.fast import select
from mtlib.coders.fast.dense import DecodePrefixes, EncodeDense, top_codes
from mtlib.coders.fast.nested import level_sums, ranked_pairs
from mtlib.coders.fast.pairs import EncodePairs, Pairs, SquaredNorms, SumBags, weight_sums
from mtlib.coders.losses import Terms

DENSE = 0.2  # share of active latents above which dense products are quicker on a CPU (measured: between 0.2 and 0.3)
CHUNK = 1 << 22  # values of z_pre held at once: 16 MB; malloc maps larger buffers afresh at every step
SATURATED = 40.0  # bandwidths from a threshold at which a sigmoid is 0 or 1 in float64


def fast_terms(coder, x: Tensor, y: Tensor, penalty_scale: Tensor | float) -> Terms | None:
    """The loss's terms by the fast path, or None where it does not apply: the caller then takes the plain one.

    Args: x (B, D) in its own units; y (B, O) in the coder's units.
    """
    if not applies(coder, x):
        return None
    with torch.no_grad():
        inputs = coder._inputs(x)
        bias = coder._input_bias()
        found = _find(coder, inputs)
        shifted = inputs if bias is None else inputs - bias
    if found is None:
        return None
    weights = (coder.enc, coder.enc_bias, coder._input_bias())
    pairs, values = found
    if isinstance(pairs, Tensor):  # dense codes
        z = EncodeDense.apply(*weights, values, shifted, pairs)
        y_hats = DecodePrefixes.apply(z, *(coder._decoder(level) for level in range(len(coder.config.levels))))
        y_hats = [_with_bias(coder, level, y_hat) for level, y_hat in enumerate(y_hats)]
        return losses.terms(coder, x, y, penalty_scale, z=z, y_hats=y_hats)
    if pairs is None:  # too many are active
        return losses.terms(coder, x, y, penalty_scale, EncodeDense.apply(*weights, values, shifted))
    if values.ndim == 2:  # many are active, but sorted by rank
        values = EncodeDense.apply(*weights, values, shifted)
        pre = values.gather(1, pairs.item.view(len(x), -1)).flatten()
    else:
        pre = EncodePairs.apply(*weights, values, shifted, pairs)
    theta = coder.theta.index_select(0, pairs.item) if coder.theta is not None else None
    z = coder._activate(pre, theta)
    if coder.config.selection == "batch_topk":
        coder._follow(_smallest(coder, pairs, z.detach()))
    return _terms(coder, x, inputs, y, penalty_scale, pairs, pre, theta, z)


def applies(coder, x: Tensor) -> bool:
    """Whether a coder's settings and the numbers' types leave something to gain."""
    c = coder.config
    types = {x.dtype, coder.enc.dtype}
    if types not in ({torch.float32}, {torch.float64}) or x.shape != (len(x), c.d_in) or x.requires_grad or not len(x):
        return False
    if coder.batch.size > 1 or coder.compute_dtype is not None:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    if c.selection in ("topk", "block_topk", "batch_topk"):
        return c.activation != "jumprelu" and (c.l0 <= DENSE * c.n_latents or _dense_codes_do(c))
    return c.selection == "none" or (c.selection == "nested_topk" and c.activation != "jumprelu")


def _dense_codes_do(c) -> bool:
    """Whether the codes alone, dense, are enough for the loss, with a decoder of its own for every level."""
    return c.selection != "batch_topk" and c.decoder == "own" and not c.tied and not c.aux_weight


# ---- which pairs ---------------------------------------------------------------------------------------------------


def _pre_chunks(coder, inputs: Tensor):
    bias = coder._encoder_bias()
    for part in inputs.split(max(1, CHUNK // coder.n_latents)):
        yield torch.addmm(bias, part, coder.enc)


def _pairs(places: Tensor, B: int, S: int) -> Pairs:
    row = places // S
    return Pairs(row, places - row * S, B, S)


def _find(coder, inputs: Tensor) -> tuple[Pairs | Tensor | None, Tensor] | None:
    """The active pairs with their pre-activations (n,).

    When many are active: the pairs by rank, or nothing, with all pre-activations (B, S); or the slope and codes (B, S).
    None when the selection could not be made: too few candidates were kept, or a number is not finite.
    """
    find = {"none": _above, "batch_topk": _top_of_batch, "nested_topk": _ranks}.get(
        coder.config.selection, _top_of_rows
    )
    return find(coder, inputs)


def _ranks(coder, inputs: Tensor):
    z_pre = torch.addmm(coder._encoder_bias(), inputs, coder.enc)
    pairs = ranked_pairs(z_pre, coder.config.ks[-1])
    if pairs is None or len(pairs.item) > DENSE * z_pre.numel():
        return pairs and (pairs, z_pre)
    return pairs, z_pre.gather(1, pairs.item.view(len(inputs), -1)).flatten()


def _top_of_rows(coder, inputs: Tensor):
    c, S = coder.config, coder.n_latents
    if c.l0 > DENSE * S:
        z = torch.addmm(coder._encoder_bias(), inputs, coder.enc).relu_()
        slope = top_codes(z, c.blocks, c.ks)
        if slope is not None and c.activation == "jumprelu_fixed":
            z.add_(torch.gt(z, c.gamma, out=torch.empty_like(z)), alpha=c.beta)
        return slope if slope is None else (slope, z)
    latents, values = [], []
    for z in _pre_chunks(coder, inputs):
        blocks = zip(c.blocks, c.ks, strict=True)
        latent = torch.cat([a + select.top_rows(z[:, a:b], k) for (a, b), k in blocks], 1)  # (b, l0)
        latents.append(latent)
        values.append(z.gather(1, latent))
    item = torch.cat(latents).flatten()
    row = torch.arange(len(inputs), device=item.device).repeat_interleave(c.l0)
    return Pairs(row, item, len(inputs), S), torch.cat(values).flatten()


def _top_of_batch(coder, inputs: Tensor):
    c, B, S = coder.config, len(inputs), coder.n_latents
    bound, found, values, start = None, [], [], 0
    for z in _pre_chunks(coder, inputs):
        bound = select.sampled_bound(z, c.blocks, c.ks) if bound is None else bound
        places = select.true_places((z <= bound).logical_not_())  # NaN counts as large, as in torch.topk
        found.append(places + start * S)
        values.append(z.flatten().index_select(0, places))
        start += len(z)
    places, values = torch.cat(found), torch.cat(values)
    pairs = _pairs(places, B, S)
    kept = torch.zeros_like(places, dtype=torch.bool)
    for (a, b), k in zip(c.blocks, c.ks, strict=True):
        own = select.true_places((pairs.item >= a) & (pairs.item < b)) if len(c.ks) > 1 else slice(None)
        best = select.top_batch(values[own], k * B, complete=not bound[a])
        if best is None:
            return None
        kept[own] = best
    kept = select.true_places(kept)
    return _pairs(places.index_select(0, kept), B, S), values.index_select(0, kept)


def _above(coder, inputs: Tensor):
    c, S = coder.config, coder.n_latents
    z_pre = torch.addmm(coder._encoder_bias(), inputs, coder.enc)
    margin = {"l0_rectangle": c.bandwidth / 2, "l0_sigmoid": SATURATED * c.bandwidth}.get(c.penalty, 0.0)
    bound = coder.theta - margin if c.activation == "jumprelu" else 0.0
    places = select.true_places((z_pre <= bound).logical_not_())
    if len(places) > DENSE * z_pre.numel():
        return None, z_pre
    return _pairs(places, len(inputs), S), z_pre.flatten().index_select(0, places)


def _smallest(coder, pairs: Pairs, z: Tensor) -> list[Tensor]:
    """The smallest value kept in every block; 0 when fewer than its share are positive."""
    c, kept = coder.config, []
    for (a, b), k in zip(c.blocks, c.ks, strict=True):
        own = z if len(c.ks) == 1 else z[(pairs.item >= a) & (pairs.item < b)]
        kept.append(own.min() if len(own) == k * pairs.n_bags else z.new_zeros(()))
    return kept


# ---- what follows from them ----------------------------------------------------------------------------------------


def _terms(coder, x, inputs, y, penalty_scale, pairs: Pairs, pre: Tensor, theta: Tensor | None, z: Tensor) -> Terms:
    c = coder.config
    y_hats = _reconstructions(coder, pairs, z)
    error = y - y_hats[-1]
    parts = {"reconstruction": losses.reconstruction(y, y_hats, c.level_weights)}
    if c.penalty != "none":
        parts["penalty"] = penalty_scale * c.penalty_weight * _penalty(coder, pairs, pre, theta, z)
    if c.mono_weight:
        parts["mono"] = losses.mono_weight(coder, penalty_scale) * mono_loss(coder._compared(x), pairs, z)
    if c.aux_weight:
        parts["aux"] = c.aux_weight * _aux(coder, inputs, error)
    active = select.true_places(z.detach() != 0)
    fired = torch.zeros(c.n_latents, dtype=torch.bool, device=x.device)
    fired.index_fill_(0, pairs.item.index_select(0, active), True)
    return Terms(parts, error, fired, torch.tensor(len(active), device=x.device))


def _reconstructions(coder, pairs: Pairs, z: Tensor) -> list[Tensor]:
    """All levels (B, O) in the coder's units."""
    c, B = coder.config, pairs.n_bags
    if c.selection == "nested_topk":
        return [_with_bias(coder, 0, y) for y in level_sums(pairs, z, coder._decoder(0), c.ks)]
    if c.decoder == "own":
        levels = range(len(c.levels))
        return [_with_bias(coder, level, _prefix(coder._decoder(level), pairs, z)) for level in levels]
    ends = torch.tensor(c.levels, device=z.device)
    L = len(ends)
    block = torch.searchsorted(ends, pairs.item, right=True)
    blocks = SumBags.apply(z, coder._decoder(0), Pairs(pairs.bag * L + block, pairs.item, B * L, pairs.n_items))
    y_hats: list[Tensor] = []
    for y in blocks.view(B, L, -1).unbind(1):
        y_hats.append(y + y_hats[-1] if y_hats else _with_bias(coder, 0, y))
    return y_hats


def _with_bias(coder, level: int, y: Tensor) -> Tensor:
    bias = coder._bias(level)
    return y if bias is None else y + bias


def _prefix(decoder: Tensor, pairs: Pairs, z: Tensor) -> Tensor:
    """Decode the pairs of the first m latents by a decoder (m, O)."""
    m = len(decoder)
    if m == pairs.n_items:
        return SumBags.apply(z, decoder, pairs)
    own = select.true_places(pairs.item < m)
    return SumBags.apply(
        z.index_select(0, own),
        decoder,
        Pairs(pairs.bag.index_select(0, own), pairs.item.index_select(0, own), pairs.n_bags, m),
    )


def _penalty(coder, pairs: Pairs, pre: Tensor, theta: Tensor | None, z: Tensor) -> Tensor:
    c, B = coder.config, pairs.n_bags
    if c.penalty.startswith("l1"):
        return z.abs().sum() / (B * c.n_latents if c.penalty == "l1_mean" else B)
    if c.penalty == "l0_sigmoid":
        return torch.sigmoid((pre - theta) / c.bandwidth).sum() / B
    return sparsity.step(pre, theta, c.bandwidth).sum() / B


def mono_loss(x: Tensor, pairs: Pairs, z: Tensor, eps: float = 1e-8) -> Tensor:
    """`losses.mono_loss` from the pairs: x (B, D) inputs, z (n,) >= 0 the values of the pairs, all others 0. Returns: ()."""
    S = pairs.n_items
    e = torch.nn.functional.normalize(x, dim=-1)
    none, values = z.new_zeros(S), z.detach()
    everywhere = torch.bincount(pairs.item, minlength=S) == pairs.n_bags
    high = none.scatter_reduce(0, pairs.item, values, "amax")
    low = none.scatter_reduce(0, pairs.item, values, "amin", include_self=False).where(everywhere, none)
    high, low = _shared(pairs.item, z, high), _shared(pairs.item, z, low)
    spread = high - low
    a = (z - low.index_select(0, pairs.item)) / spread.clamp_min(eps).index_select(0, pairs.item)
    total, squares = weight_sums(pairs.item, a, S), weight_sums(pairs.item, a.square(), S)
    below = total.square() - squares
    valid = (spread > eps) & (below > eps)
    score = (SquaredNorms.apply(a, e, pairs) - squares) / below.clamp_min(eps)
    score, count = torch.where(valid, score, none), valid.sum()
    return torch.where(count > 0, 1 - score.sum() / count.clamp_min(1), score.sum() * 0)


def _shared(item: Tensor, z: Tensor, extreme: Tensor) -> Tensor:
    """`extreme` (S,) of the values of each item, its gradient shared by the values that reach it, as amin and amax do."""
    reach = (z.detach() == extreme.index_select(0, item)).to(z.dtype)
    count = weight_sums(item, reach, len(extreme)).clamp_min(1)
    return torch.where(extreme > 0, weight_sums(item, z * reach, len(extreme)) / count, extreme)


def _aux(coder, inputs: Tensor, error: Tensor) -> Tensor:
    """AuxK as a small dense coder of the dead latents alone; no work when none is dead."""
    dead = coder.dead
    places = select.true_places(dead)
    if not len(places):
        return error.new_zeros(())
    enc, bias = coder.enc.index_select(1, places), coder._encoder_bias().index_select(0, places)
    z = torch.addmm(bias, inputs, enc).relu()  # (B, n_dead)
    return losses.aux(error, sparsity.topk(z, coder.aux_k) @ coder._decoder(-1).index_select(0, places), dead)
