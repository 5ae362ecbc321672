"""Products in bf16 and tf32, devices, and data that stays on disk."""

import numpy as np
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.learn.batches import Rows
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit, products_in, summary
from tests.learn.test_train import TRAIN, VAL, _config, _data

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def _trained(folder, device="cpu", name="matryoshka_transcoder_shared", **changes) -> SparseCoder:
    x, y = _data()
    config = _config(name, l0=None)
    how = TrainConfig(**(dict(steps=80, batch=64, lr=3e-3, val_every=40, l0_target=6, device=device) | changes))
    return fit(config, x, y if config.target == "y" else x, TRAIN, VAL, how, folder)


@pytest.mark.parametrize("name", ["matryoshka_transcoder_shared", "monoloss_jumprelu", "transcoder"])
def test_bf16_trains_nearly_as_well_and_keeps_its_state_in_float32(name, tmp_path):
    _trained(tmp_path / "full", name=name)
    coder = _trained(tmp_path / "bf16", name=name, precision="bf16")
    full, half = summary(tmp_path / "full"), summary(tmp_path / "bf16")
    assert half["fvu"] != full["fvu"] and half["fvu"] == pytest.approx(full["fvu"], abs=0.05)
    assert all(v.dtype == torch.float32 for v in coder.state_dict().values() if v.is_floating_point())
    assert coder.compute_dtype is None  # what is measured and used afterwards is float32


def test_bf16_rounds_the_two_products_and_nothing_else():
    coder = SparseCoder(_config("alexnet", theta_init=0.1, l0=None)).train()
    x = torch.from_numpy(_data()[0][:50])
    with products_in(coder, "bf16"):
        z_pre = coder._pre(x)
        inputs = (x - coder.x_mean) / coder.x_scale
        expected = (inputs.bfloat16() @ coder.enc.bfloat16()).float() + coder.enc_bias
        torch.testing.assert_close(z_pre, expected, rtol=0, atol=0)
        loss, _ = coder.loss(x, x)
        loss.backward()
    assert z_pre.dtype == loss.dtype == coder.theta.grad.dtype == coder.enc.grad.dtype == torch.float32
    assert not torch.equal(z_pre, coder._pre(x)) and not torch.backends.cuda.matmul.allow_tf32


def test_tf32_changes_nothing_on_a_cpu(tmp_path):
    a = _trained(tmp_path / "a")
    b = _trained(tmp_path / "b", precision="tf32")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class _Counted(np.memmap):
    """A memory map that says how many of its rows were asked for at once."""

    most = 0

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            type(self).most = max(type(self).most, len(index))
        return super().__getitem__(index)


def test_data_is_never_read_whole(tmp_path):
    x = np.random.default_rng(0).normal(size=(30_000, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r").view(_Counted)
    train, val, how = np.arange(20_000), np.arange(20_000, 30_000), TrainConfig(steps=3, batch=64, val_every=3)
    config = _config("sae")
    a = fit(config, x, None, train, val, how, tmp_path / "array")
    b = fit(config, mapped, None, train, val, how, tmp_path / "mapped")
    assert 64 < _Counted.most <= 8192  # the blocks of statistics and validation
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_bad_precision_and_device_are_refused():
    for change in (dict(precision="fp16"), dict(device="tpu")):
        with pytest.raises(ValueError, match=next(iter(change))):
            TrainConfig(**change)


@gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_gpu_agrees_with_the_cpu(precision, tmp_path):
    _trained(tmp_path / "cpu")
    _trained(tmp_path / "gpu", device="cuda", precision=precision)
    cpu, cuda = summary(tmp_path / "cpu"), summary(tmp_path / "gpu")
    assert cuda["fvu"] == pytest.approx(cpu["fvu"], abs=0.02 if precision != "bf16" else 0.05)


@gpu
def test_compiled_loss_is_the_loss(tmp_path):
    a = _trained(tmp_path / "plain", device="cuda")
    b = _trained(tmp_path / "compiled", device="cuda", compile=True)
    torch.testing.assert_close(a.enc, b.enc, rtol=1e-2, atol=1e-3)


@gpu
def test_resident_data_lies_on_the_gpu():
    rows = Rows(_data()[0], TRAIN, torch.device("cuda"))
    assert rows.tensor is not None and rows.tensor.is_cuda
