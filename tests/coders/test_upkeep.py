"""What is done to weights around a step, by hand on random weights."""

import pytest
import torch

from mtlib.coders import upkeep
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig

D, S = 6, 20


def _coder(**changes) -> SparseCoder:
    settings = dict(d_in=D, d_out=D, n_latents=S, selection="none", pre_bias="decoder", unit_norm_decoder=True)
    coder = SparseCoder(SparseCoderConfig(**settings | changes)).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in coder.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return coder


def _gradients(coder: SparseCoder) -> torch.Tensor:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    coder.loss(x, x)[0].backward()
    return x


def test_rescaling_keeps_the_reconstruction():
    coder = _coder(unit_norm_rescales=True, activation="jumprelu")
    with torch.no_grad():
        coder.theta.abs_()
    x = _gradients(coder)
    before = coder.decode(coder.encode(x))
    upkeep.after_step(coder)
    torch.testing.assert_close(coder.dec[0].norm(dim=1), torch.ones(S).double())
    torch.testing.assert_close(coder.decode(coder.encode(x)), before)


@pytest.mark.parametrize("tied", [False, True])
def test_projected_gradients_stand_at_a_right_angle_to_their_rows(tied):
    coder = _coder(project_gradient=True, tied=tied)
    _gradients(coder)
    upkeep.before_step(coder)
    w, grad = (coder.enc.T, coder.enc.grad.T) if tied else (coder.dec[0], coder.dec[0].grad)
    torch.testing.assert_close((w * grad).sum(1), torch.zeros(S).double())


def test_norms_before_the_step_are_left_alone_after_it():
    coder = _coder(unit_norm_when="before")
    upkeep.before_step(coder)
    torch.testing.assert_close(coder.dec[0].norm(dim=1), torch.ones(S).double())
    with torch.no_grad():
        coder.dec[0].mul_(3)
    upkeep.after_step(coder)
    torch.testing.assert_close(coder.dec[0].norm(dim=1), torch.full((S,), 3.0).double())


def test_columns_are_one_per_output_unit():
    coder = _coder(unit_norm_along="columns")
    upkeep.after_step(coder)
    torch.testing.assert_close(coder.dec[0].norm(dim=0), torch.ones(D).double())


def test_a_frozen_decoder_has_no_gradient_to_follow():
    coder = _coder(frozen_decoder=True)
    _gradients(coder)
    upkeep.before_step(coder)
    assert coder.dec[0].grad is None and coder.enc.grad is not None


def test_codes_stay_below_the_soft_cap_in_their_order():
    plain, capped = _coder(selection="topk", ks=(3,)), _coder(selection="topk", ks=(3,), soft_cap=0.5)
    x = 3 * torch.randn(9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(capped.encode(x), 0.5 * torch.tanh(plain.encode(x) / 0.5))


def test_first_directions_as_asked():
    coder = SparseCoder(SparseCoderConfig(d_in=D, d_out=D, n_latents=S, ks=(3,), init="independent", init_norm=0.1))
    torch.testing.assert_close(coder.dec[0].norm(dim=1), torch.full((S,), 0.1))
    assert not torch.allclose(coder.dec[0], coder.enc.T)


def test_rescaling_needs_one_decoder():
    with pytest.raises(ValueError, match="unit_norm_rescales = True: must be false unless there is one decoder"):
        _coder(unit_norm_rescales=True, tied=True)
