"""The path of a GPU: the same numbers as the plain loss, by Triton's kernels, without a question to the device.

Without a GPU the kernels run in Triton's interpreter, and the code is told that the host does not hold the tensors.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtlib.coders import losses, sparsity
from mtlib.coders.fast import pairs as P
from mtlib.coders.fast import select, terms
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn import train
from mtlib.learn.config import TrainConfig

kernels = pytest.importorskip("mtlib.coders.fast.triton_kernels")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SHAPES = dict(d_in=6, d_out=6, n_latents=32, pre_bias="decoder")
KINDS = {
    "topk": dict(ks=(3,)),
    "topk_aux_mono": dict(ks=(3,), aux_weight=0.1, mono_weight=0.2, dead_after=50),
    "fixed_jump": dict(
        ks=(3,), activation="jumprelu_fixed", gamma=0.3, beta=0.5, penalty="l1_mean", penalty_weight=0.1
    ),
    "blocks": dict(selection="block_topk", levels=(8, 16, 32), ks=(1, 2, 3), decoder="shared"),
    "batch": dict(selection="batch_topk", ks=(3,)),
    "batch_blocks": dict(selection="batch_topk", levels=(8, 16, 32), ks=(1, 2, 3), decoder="shared"),
    "nested": dict(selection="nested_topk", ks=(2, 5, 32), decoder="shared"),
}
ASKS = "nonzero nonzero_static _local_scalar_dense item bincount is_nonzero masked_select _unique _unique2 unique_dim"
ASKS = {*f"{ASKS} unique_consecutive equal histc".split()}


@pytest.fixture
def on_device(monkeypatch):
    """Takes the path of a GPU; on a CPU by denying that the host holds the tensors."""
    if not GPU:
        monkeypatch.setattr(sparsity, "on_cpu", lambda t: False)
    return monkeypatch


class NoQuestions(TorchDispatchMode):
    """Refuses every operation for which the host waits for a device; copies: also arrays and lists that become tensors."""

    def __init__(self, copies: bool = True):
        super().__init__()
        self.refused = ASKS | ({"lift_fresh"} if copies else set())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = (
            [i for i in args[1] if i is not None] if func.overloadpacket.__name__ in ("index", "index_put_") else []
        )
        if func.overloadpacket.__name__ in self.refused or any(i.dtype == torch.bool for i in places):
            raise AssertionError(f"{func}: the host waits for the device")
        return func(*args, **(kwargs or {}))


def _coder(kind: str, dtype=torch.float64, fast: str = "auto") -> SparseCoder:
    coder = SparseCoder(SparseCoderConfig(**(SHAPES | KINDS[kind])))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in coder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
        coder.rows_since_fired[::3] = 100
    coder.fast = fast
    return coder.to(DEVICE, dtype).train()


def _measured(coder: SparseCoder, n: int = 3) -> dict[str, torch.Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=coder.enc.dtype).to(DEVICE)
    total, parts = coder.loss(x, x)
    total.backward()
    grads = {f"grad {k}": p.grad for k, p in coder.named_parameters()}
    return {k: v.detach().cpu() for k, v in (parts | grads | dict(coder.named_buffers())).items()}


def _assert_close(found: dict, expected: dict, **tolerances) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, name=name: f"{name}: {m}", **tolerances)


@pytest.mark.parametrize("share", [1e-9, 2.0], ids=["products", "kernels"])
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_path_equals_the_plain_loss_in_every_part_gradient_and_buffer(kind, share, on_device):
    expected = _measured(_coder(kind, fast="off"))
    on_device.setattr(P, "DENSE_FROM", dict.fromkeys(P.DENSE_FROM, share))
    on_device.setattr(losses, "DenseCodes", None)  # the plain terms would fail
    with NoQuestions():
        found = _measured(_coder(kind))
    _assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["topk", "batch", "nested"])
def test_gpu_path_without_triton_gives_the_same_numbers(kind, on_device):
    expected = _measured(_coder(kind, fast="off"))
    on_device.setattr(P, "_module", lambda library: None)
    _assert_close(_measured(_coder(kind)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["topk", "blocks"])
def test_selection_kernel_is_used_and_exact_in_float32(kind, on_device):
    expected = _measured(_coder(kind, torch.float32, fast="off"), n=2)
    _assert_close(_measured(_coder(kind, torch.float32), n=2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [1e-9, 2.0], ids=["products", "kernels"])
def test_bf16_rounds_the_product_and_selects_what_the_plain_path_selects(share, on_device):
    on_device.setattr(P, "DENSE_FROM", dict.fromkeys(P.DENSE_FROM, share))
    found = {}
    for fast in ("off", "auto"):
        coder = _coder("topk", torch.float32, fast)
        with train.products_in(coder, "bf16"):
            found[fast] = _measured(coder, n=2)
    assert torch.equal(found["auto"]["rows_since_fired"], found["off"]["rows_since_fired"])
    _assert_close(found["auto"], found["off"], rtol=0.03, atol=0.03)


@pytest.mark.parametrize("case", ["plain", "ties", "wide", "all_equal", "not_finite"])
def test_top_rows_are_the_first_largest_of_each_row(case):
    g, dtype = torch.Generator().manual_seed(0), torch.bfloat16 if case in ("ties", "not_finite") else torch.float32
    B, S, k = {"wide": (2, 1300, 300), "all_equal": (1, 700, 3)}.get(case, (2, 1100, 6))
    z, bias = torch.randn(B, S + 8, generator=g).to(dtype)[:, :S], torch.randn(S, generator=g)  # rows that lie apart
    if case in ("ties", "all_equal"):
        z, bias = ((t * (case == "ties")).round() for t in (z, bias))
    if case == "not_finite":
        z[0, 5], z[0, 900], z[1, :] = torch.nan, -torch.inf, torch.inf
    total = (z.float() + bias).nan_to_num(nan=torch.inf) if case == "not_finite" else z.float() + bias
    expected = total.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values
    found = kernels.top_rows(z.to(DEVICE), bias.to(DEVICE), k)
    assert torch.equal(found.cpu(), expected)


def test_sums_of_the_kernels_by_hand(on_device):
    pairs = P.Pairs(
        *(torch.tensor(v, device=DEVICE) for v in ([0, 0, 1, 3, 3, 3], [1, 4, 1, 0, 1, 4])), n_bags=4, n_items=5
    )
    table, weight = torch.arange(15.0, device=DEVICE).view(5, 3), torch.arange(1.0, 7, device=DEVICE)
    dense = torch.zeros(4, 5, device=DEVICE).index_put((pairs.bag, pairs.item), weight)
    for share in (1e-9, 2.0):  # products, kernels
        on_device.setattr(P, "DENSE_FROM", dict.fromkeys(P.DENSE_FROM, share))
        assert torch.equal(P.bag_sums(pairs, weight, table), dense @ table)  # bag 2 is empty: zeros
        assert torch.equal(P.item_sums(pairs, weight, table[:4]), dense.T @ table[:4])
        assert torch.equal(P.item_totals(pairs, weight), dense.sum(0))
        assert torch.equal(P.pair_dots(pairs, table[:4], table), (table[:4] @ table.T)[pairs.bag, pairs.item])


def test_what_must_be_counted_or_has_many_active_takes_the_plain_path(on_device):
    x = torch.zeros(3, 6, device=DEVICE, dtype=torch.float64)
    assert terms.applies(_coder("topk"), x)
    for changes in (
        dict(ks=(20,)),
        dict(selection="none", ks=()),
        dict(selection="batch_topk", levels=(8, 32), ks=(3,)),
    ):
        coder = _coder("topk")
        coder.config = SparseCoderConfig(**(SHAPES | KINDS["topk"] | dict(pre_bias="none") | changes))
        assert not terms.applies(coder, x), changes


@pytest.mark.parametrize("kind", ["topk_aux_mono", "batch", "nested"])
def test_a_whole_training_step_asks_the_device_for_nothing(kind, on_device, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    config = SparseCoderConfig(**(SHAPES | KINDS[kind] | dict(unit_norm_decoder=True)))
    how = TrainConfig(steps=3, batch=2, log_every=2, grad_clip=1.0, device=DEVICE)
    rows = np.arange(50), np.arange(50, 60)
    loop = train._Loop(config, x, x, *rows, how, None, tmp_path, "key", None, 1)
    for _ in range(2):
        with NoQuestions(copies=False):  # the batch itself comes from an array
            loop._train_step()
        loop.step += 1
    loop._log()
    assert np.isfinite(loop.history[-1]["loss"]) and loop.coder.most_dead in (0, 32)


def test_auxk_of_those_that_may_be_dead_equals_that_of_all(on_device):
    expected = _measured(_coder("topk_aux_mono", fast="off"))
    coder = _coder("topk_aux_mono")
    coder.most_dead = 20  # of 32, 11 dead
    _assert_close(_measured(coder), expected, rtol=1e-9, atol=1e-11)


def test_kth_largest_and_places_are_asked_of_a_device_in_its_own_way(on_device):
    z = torch.tensor([[3.0, 1, 2], [0, 5, 4]], device=DEVICE)
    assert select.kth_largest(z, 2).tolist() == [2, 4] and select.true_places(z > 2).tolist() == [0, 4, 5]


def test_questions_are_refused():
    x = torch.arange(3.0, device=DEVICE)
    for ask in (lambda: x[x > 1], lambda: bool((x > 1).any()), lambda: float(x[0]), lambda: torch.tensor([1.0])):
        with NoQuestions(), pytest.raises(AssertionError, match="waits"):
            ask()
