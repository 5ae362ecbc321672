"""The fast path gives the numbers of the plain loss: every part, gradient and buffer, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mtlib.coders import losses, upkeep
from mtlib.coders.fast import pairs as P
from mtlib.coders.fast import select, terms
from mtlib.coders.fast.dense import DecodePrefixes, EncodeDense, top_codes
from mtlib.coders.fast.nested import rank_dots
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn.optimiser import AdamW

SHAPES = dict(d_in=6, d_out=5, n_latents=96)
LEVELS = (16, 40, 96)
KINDS = {
    "topk": dict(selection="topk", ks=(5,)),
    "topk_fixed_jump": dict(
        selection="topk", ks=(5,), activation="jumprelu_fixed", gamma=0.3, beta=0.5, penalty="l1_mean"
    ),
    "block_own": dict(selection="block_topk", levels=LEVELS, ks=(1, 2, 3), decoder="own", activation="jumprelu_fixed"),
    "block_shared": dict(selection="block_topk", levels=LEVELS, ks=(1, 2, 3), decoder="shared"),
    "batch": dict(selection="batch_topk", ks=(4,)),
    "batch_prefix": dict(selection="batch_topk", ks=(4,), levels=LEVELS, decoder="shared"),
    "batch_blocks_own": dict(selection="batch_topk", ks=(1, 2, 3), levels=LEVELS, decoder="own"),
    "nested": dict(selection="nested_topk", ks=(2, 5, 9), decoder="shared"),
    "nested_wide": dict(selection="nested_topk", ks=(2, 24, 96), decoder="shared", level_weights=(0.5, 0.3, 0.2)),
    "relu": dict(selection="none", penalty="l1_sum"),
    "relu_relative": dict(selection="none", penalty="l1_relative", soft_cap=2.0),
    "batch_capped": dict(selection="batch_topk", ks=(4,), soft_cap=1.5),
    "topk_capped": dict(selection="topk", ks=(5,), soft_cap=1.5),
    "jump_rectangle": dict(
        selection="none", activation="jumprelu", penalty="l0_rectangle", bandwidth=0.3, theta_init=2.5
    ),
    "jump_sigmoid": dict(selection="none", activation="jumprelu", penalty="l0_sigmoid", bandwidth=0.01, theta_init=2.5),
    "jump_l1": dict(selection="none", activation="jumprelu", penalty="l1_mean", theta_init=2.5),
}
DENSE_KIND = {
    "block_dense": dict(
        selection="block_topk",
        levels=LEVELS,
        ks=(4, 8, 20),
        decoder="own",
        activation="jumprelu_fixed",
        penalty="l1_mean",
    ),
    "topk_dense_capped": dict(selection="topk", ks=(40,), soft_cap=1.5, penalty="l1_relative"),
}


def _coder(kind: str, seed: int = 0, **changes) -> SparseCoder:
    target = dict(target="y") if changes.pop("transcode", True) else dict(target="x", d_out=SHAPES["d_in"])
    coder = SparseCoder(
        SparseCoderConfig(**(SHAPES | target | (KINDS | DENSE_KIND)[kind] | {"penalty_weight": 0.1} | changes)), seed
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in coder.parameters():
            p.add_(0.1 * torch.randn(p.shape))
        if kind.startswith("relu"):  # sparse enough to be worth it
            coder.enc_bias.sub_(2.5)
        coder.x_mean.normal_()
        coder.x_scale.uniform_(0.5, 1.5)
        coder.y_mean.normal_()
        coder.y_scale.uniform_(0.5, 1.5)
        coder.rows_since_fired[::3] = coder.config.dead_after
    return coder.double().train()


def _batch(coder: SparseCoder, n: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, coder.config.d_in, generator=g, dtype=torch.float64)
    return x, torch.randn(n, coder.config.d_out, generator=g, dtype=torch.float64)


def _run(coder: SparseCoder, fast: str, n: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """Loss, parts, gradients and buffers after one loss of a copy."""
    twin = SparseCoder(coder.config).double().train()
    twin.load_state_dict(coder.state_dict())
    twin.fast = fast
    loss, parts = twin.loss(*_batch(coder, n, seed), penalty_scale=1.3)
    loss.backward()
    grads = {f"grad {k}": p.grad for k, p in twin.named_parameters()}
    return {"loss": loss.detach()} | parts | grads | {f"buffer {k}": b for k, b in twin.named_buffers()}


def _assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        if a[name] is None or b[name] is None:
            assert a[name] is b[name], name
        else:
            torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def sparse_only(monkeypatch):
    """The fast path must find the pairs: the dense way out fails the test."""

    def refuse(*_, **__):
        raise AssertionError("the plain terms were computed")

    def run(coder, **batch):
        with monkeypatch.context() as m:
            m.setattr(losses, "DenseCodes", refuse)
            return _run(coder, "auto", **batch)

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_fast_equals_plain_in_every_part_gradient_and_buffer(kind, sparse_only):
    coder = _coder(kind, mono_weight=0.2, aux_weight=0.1)
    _assert_same(_run(coder, "off"), sparse_only(coder))
    nothing_dead = _coder(kind, seed=1)
    nothing_dead.rows_since_fired.zero_()
    _assert_same(_run(nothing_dead, "off"), sparse_only(nothing_dead))


@pytest.mark.parametrize("kind", ["topk", "batch", "nested", "relu"])
@pytest.mark.parametrize(
    "changes", [dict(tied=True), dict(decoder_bias=False), dict(pre_bias="own"), dict(pre_bias="decoder")]
)
def test_fast_equals_plain_for_autoencoders(kind, changes, sparse_only):
    coder = _coder(kind, transcode=False, unit_norm_decoder=True, **changes)
    _assert_same(_run(coder, "off"), sparse_only(coder))


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS | DENSE_KIND)),
    n=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    mono=st.booleans(),
    aux=st.booleans(),
)
def test_fast_equals_plain_on_random_batches(kind, n, seed, mono, aux):
    coder = _coder(kind, seed % 7, mono_weight=0.2 * mono, aux_weight=0.1 * aux)
    _assert_same(_run(coder, "off", n, seed), _run(coder, "auto", n, seed))


@settings(max_examples=60)
@given(
    B=st.integers(1, 9), S=st.integers(1, 300), k=st.integers(1, 12), seed=st.integers(0, 10_000), ties=st.booleans()
)
def test_top_rows_are_the_largest_of_each_row(B, S, k, seed, ties):
    z = torch.randn(B, S, generator=torch.Generator().manual_seed(seed))
    z = z.round() if ties else z
    latents = select.top_rows(z, min(k, S))
    assert latents.shape == (B, min(k, S)) and (latents.diff(dim=1) > 0).all()
    assert torch.equal(z.gather(1, latents).sort(1).values, z.topk(min(k, S)).values.flip(1))


def test_top_of_batch_by_hand():
    values = torch.tensor([3.0, 1.0, 2.0])
    assert select.top_batch(values, 2, complete=False).tolist() == [True, False, True]
    assert select.top_batch(values, 4, complete=False) is None  # a positive value may be missing
    assert select.top_batch(values, 4, complete=True).all()
    assert select.top_batch(torch.tensor([1.0, 2.0, 1.0]), 2, complete=True).tolist() == [True, True, False]  # a tie


def _pairs() -> P.Pairs:
    return P.Pairs(torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([1, 4, 1, 0, 1, 4]), n_bags=4, n_items=5)


def test_gradients_of_the_sums_by_finite_differences():
    g = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)  # noqa: E731
    assert gradcheck(lambda w, t: P.SumBags.apply(w, t, _pairs()), (random(6), random(5, 3)))
    table = random(4, 3).detach()
    assert gradcheck(lambda w: P.SquaredNorms.apply(w, table, _pairs()), (random(6),))
    x, enc, bias, pre = random(4, 3).detach(), random(3, 5), random(5), random(3)
    pairs = _pairs()

    def encode(enc, bias, pre):
        shifted = (x - pre).detach()
        values = (shifted @ enc + bias).detach()
        return P.EncodePairs.apply(enc, bias, pre, values[pairs.bag, pairs.item], shifted, pairs)

    def encode_dense(enc, bias, pre):
        shifted = (x - pre).detach()
        return EncodeDense.apply(enc, bias, pre, (shifted @ enc + bias).detach(), shifted)

    assert gradcheck(encode, (enc, bias, pre)) and gradcheck(encode_dense, (enc, bias, pre))


def test_sums_over_pairs_by_hand():
    table = torch.arange(10.0).view(5, 2)
    weight = torch.tensor([1.0, 2, 3, 4, 5, 6])
    dense = torch.zeros(4, 5).index_put((_pairs().bag, _pairs().item), weight)
    assert torch.equal(P.bag_sums(_pairs(), weight, table), dense @ table)  # bag 2 is empty: zeros
    assert torch.equal(P.item_sums(_pairs(), weight, table[:4]), dense.T @ table[:4])
    assert torch.equal(P.pair_dots(_pairs(), table[:4], table), (table[:4] @ table.T)[_pairs().bag, _pairs().item])


def test_inactive_latents_get_a_gradient_of_exactly_zero():
    coder = _coder("topk")
    x, y = _batch(coder, n=3)
    loss, _ = coder.loss(x, y)
    loss.backward()
    asleep = coder.rows_since_fired > 0
    assert asleep.sum() >= 96 - 3 * 5
    assert (coder.enc.grad[:, asleep] == 0).all() and (coder.dec[0].grad[asleep] == 0).all()


@pytest.mark.parametrize("kind", ["relu", "jump_rectangle"])
def test_dense_activations_take_the_dense_products(kind, monkeypatch):
    coder = _coder(kind)
    with torch.no_grad():
        coder.enc_bias.add_(5)
    expected = _run(coder, "off")
    monkeypatch.setattr(terms, "PairCodes", None)  # the sparse terms would fail
    _assert_same(expected, _run(coder, "auto"))


def test_dense_settings_are_left_to_the_plain_path():
    dense = _coder("topk")
    dense.config = dense.config.with_(ks=(40,), aux_weight=0.1)
    x, _ = _batch(dense)
    assert terms.applies(_coder("topk"), x) and not terms.applies(dense, x)
    assert not terms.applies(_coder("topk"), x.float())  # mixed types


def test_values_that_are_not_finite_reach_the_loss():
    for kind in ("topk", "batch", "nested", "relu"):
        coder = _coder(kind)
        x, y = _batch(coder)
        x[3] = torch.inf
        assert not torch.isfinite(coder.loss(x, y)[0])


def test_mono_loss_counts_latents_that_are_active_everywhere():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=g, dtype=torch.float64)
    z = torch.rand(8, 3, generator=g, dtype=torch.float64) + 0.5  # latent 0 on every row: its minimum is not 0
    z[::2, 1:] = 0
    z.requires_grad_()
    row, latent = z.detach().nonzero(as_tuple=True)
    sparse = terms.mono_scores(x, P.Pairs(row, latent, 8, 3), z[row, latent])
    expected, found = losses.mono_loss(*losses.mono_scores(x, z)), losses.mono_loss(*sparse)
    torch.testing.assert_close(found, expected)
    found, expected = (torch.autograd.grad(v, z)[0][row, latent] for v in (found, expected))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["topk", "batch_prefix", "block_own"])
def test_training_repeats_to_the_last_bit_and_follows_the_plain_path(kind):
    def train(fast: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        coder = _coder(kind, aux_weight=0.1, unit_norm_decoder=True).to(dtype)
        coder.fast = fast
        optimiser = AdamW(coder.named_parameters())
        for step in range(20):
            x, y = _batch(coder, seed=step)
            optimiser.zero_grad()
            coder.loss(x.to(dtype), y.to(dtype))[0].backward()
            optimiser.step(1e-2)
            upkeep.after_step(coder)
        return coder.state_dict()

    first, second = (train("auto", torch.float32) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # in float64, where the last digit decides no selection in 20 steps
    fast, plain = (train(how, torch.float64) for how in ("auto", "off"))
    for name, value in fast.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_and_cpu_agree(kind):
    coder = _coder(kind, mono_weight=0.2, aux_weight=0.1)
    x, y = _batch(coder)
    expected, _ = coder.loss(x, y)
    found, _ = _coder(kind, mono_weight=0.2, aux_weight=0.1).cuda().loss(x.cuda(), y.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_dense_codes_and_prefix_decoders():
    z = torch.tensor([[3.0, 1, 2, 0, 5, 4], [0, 0, 1, 7, 0, 0]])
    slope = top_codes(z, ((0, 3), (3, 6)), (2, 1))
    assert z.tolist() == [[3, 0, 2, 0, 5, 0], [0, 0, 1, 7, 0, 0]] and torch.equal(slope, (z > 0).float())
    assert top_codes(torch.ones(1, 4), ((0, 4),), (2,)) is None  # equal values
    g = torch.Generator().manual_seed(0)
    decoders = [torch.randn(m, 3, generator=g, dtype=torch.float64, requires_grad=True) for m in (2, 4, 5)]
    codes = torch.randn(4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    assert gradcheck(DecodePrefixes.apply, (codes, *decoders))


def test_equal_values_take_the_plain_path():
    coder = _coder("block_dense")
    with torch.no_grad():
        coder.enc.zero_()
        coder.enc_bias.fill_(1)
    _assert_same({"loss": _run(coder, "off")["loss"]}, {"loss": _run(coder, "auto")["loss"]})


def test_dense_blocks_equal_plain_and_compute_no_code_twice(monkeypatch):
    coder = _coder("block_dense", mono_weight=0.2)
    expected = _run(coder, "off")
    monkeypatch.setattr(SparseCoder, "_select", None)  # the plain selection would fail
    _assert_same(expected, _run(coder, "auto"))


def test_dots_of_narrow_and_wide_segments_of_ranks():
    g = torch.Generator().manual_seed(0)
    table, left = torch.randn(40, 3, generator=g), torch.randn(2 * 5, 3, generator=g)
    item = torch.stack([torch.randperm(40, generator=g) for _ in range(2)])[:, :22]
    bounds = (0, 1, 12, 13, 21, 22)  # two wide segments among single ranks
    segment = torch.searchsorted(torch.tensor(bounds[1:]), torch.arange(22), right=True)
    bag = torch.arange(2)[:, None] * 5 + segment
    expected = (left[bag] * table[item]).sum(-1).flatten()
    found = rank_dots(P.Pairs(bag.flatten(), item.flatten(), 10, 40), left, table, bounds)
    torch.testing.assert_close(found, expected)
