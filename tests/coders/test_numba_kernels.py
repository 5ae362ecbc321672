"""numba's selection gives the latents of the definition, and a training step the numbers of the plain loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlib.coders.fast import pairs as P
from mtlib.coders.fast import select
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig

kernels = pytest.importorskip("mtlib.coders.fast.numba_kernels", reason="numba is not installed", exc_type=ImportError)


@settings(max_examples=80, deadline=None)
@given(
    B=st.integers(1, 9),
    S=st.integers(64, 700),
    k=st.integers(1, 12),
    left=st.integers(0, 9),
    seed=st.integers(0, 10_000),
    ties=st.sampled_from((0, 1, 4)),
    threads=st.sampled_from((1, 3)),
)
def test_top_rows_are_the_first_of_a_stable_sort(B, S, k, left, seed, ties, threads):
    g = torch.Generator().manual_seed(seed)
    z, bias, k = torch.randn(B, S + left, generator=g)[:, left:], torch.randn(S, generator=g), min(k, S // 32)
    if ties:  # zeros of both signs, and rows where most are equal
        z, bias = (z / ties).round(), (bias / ties).round()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    latents = kernels.top_rows(z, bias, k)
    torch.set_num_threads(before)
    best = (z + bias).sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(latents, best.sort(1).values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 77, 129])
def test_what_is_not_finite_is_left_to_torch(bad, place):
    z = torch.randn(3, 130)
    z[1, place] = bad
    assert kernels.top_rows(z, torch.zeros(130), 2) is None
    assert torch.equal(select.top_rows(z, 2, torch.zeros(130)), z.topk(2).indices.sort(1).values)


@settings(max_examples=60, deadline=None)
@given(
    bags=st.integers(1, 9),
    items=st.integers(1, 9),
    width=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 9999),
)
def test_sums_over_pairs_are_torchs_to_the_last_bit(bags, items, width, share, seed):
    g = torch.Generator().manual_seed(seed)
    bag, item = (torch.rand(bags, items, generator=g) < share).nonzero().unbind(1)
    pairs, weight = P.Pairs(bag, item, bags, items), torch.randn(len(bag), generator=g)
    table = torch.randn(items, width, generator=g)
    assert torch.equal(kernels.bag_sums(pairs, weight, table), P.bag_sums(pairs, weight, table))


@pytest.mark.parametrize(
    "kind",
    [
        dict(selection="topk", ks=(4,)),
        dict(selection="block_topk", ks=(2, 3), levels=(64, 256), decoder="own"),
        dict(selection="nested_topk", ks=(2, 8), decoder="shared"),
    ],
    ids=lambda kind: kind["selection"],
)
def test_step_equals_the_plain_one(kind, monkeypatch):
    monkeypatch.setattr(P, "MANY", 1)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 12, generator=g), torch.randn(40, 10, generator=g)
    seen = []
    for name in ("top_rows", "bag_sums"):
        own = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given, own=own, name=name: seen.append(name) or own(*given))
    losses, gradients = [], []
    for fast in ("off", "auto"):
        coder = SparseCoder(SparseCoderConfig(d_in=12, d_out=10, n_latents=256, target="y", **kind), 0)
        torch.nn.init.normal_(coder.enc_bias, std=0.1, generator=torch.Generator().manual_seed(1))
        coder.fast = fast
        loss, _ = coder.loss(x, y)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in coder.parameters() if p.grad is not None])
    assert set(seen) == {"top_rows", "bag_sums"} and torch.allclose(*losses, rtol=1e-6)
    for plain, fast in zip(*gradients, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-4, atol=1e-7)


def test_a_library_that_cannot_be_imported_is_told_and_done_without(monkeypatch):
    def refuse(name):
        raise ImportError("Numba needs NumPy 2.4 or less")

    monkeypatch.setattr(P, "import_module", refuse)
    P._module.cache_clear()
    with pytest.warns(UserWarning, match=r"torch's own kernels are taken: Numba needs NumPy"):
        assert P.kernels(torch.zeros(1), P.MANY) is None
    P._module.cache_clear()
