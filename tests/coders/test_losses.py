"""Each loss term against hand-computed values, and MonoScore against its pairwise definition."""

import pytest
import torch

from mtlib.coders import losses
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig

Y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def test_reconstruction_weights_levels():
    y_hats = [torch.zeros(2, 2), Y + 1]  # squared errors: 1 + 4 + 9 + 16 = 30 over 4 elements; 1 each
    assert losses.reconstruction(Y, y_hats, (0.2, 0.8)).item() == pytest.approx(0.2 * 7.5 + 0.8 * 1.0)


def test_reconstruction_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\), target \(2, 2\)"):
        losses.reconstruction(Y, [torch.zeros(2, 3)], (1.0,))


@pytest.mark.parametrize(("penalty", "expected"), [("l1_mean", 1.0), ("l1_sum", 3.0)])
def test_l1_mean_and_sum_by_hand(penalty, expected):
    coder = SparseCoder(SparseCoderConfig(d_in=2, d_out=2, n_latents=3, selection="none", penalty=penalty))
    z = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    assert losses.DenseCodes(coder, Y, z=z).penalty().item() == expected


@pytest.mark.parametrize("penalty", ["l0_sigmoid", "l0_rectangle"])
def test_l0_surrogates_count_clear_cases(penalty):
    settings = dict(selection="none", activation="jumprelu", theta_init=0.0, penalty=penalty)
    coder = SparseCoder(SparseCoderConfig(d_in=2, d_out=2, n_latents=2, **settings))
    z_pre = torch.tensor([[5.0, -5.0], [5.0, 5.0]])
    assert losses.DenseCodes(coder, Y, z_pre=z_pre).penalty().item() == pytest.approx(1.5)


def _pairwise(x: torch.Tensor, z: torch.Tensor, latent: int) -> float:
    e = torch.nn.functional.normalize(x, dim=-1)
    a = (z[:, latent] - z[:, latent].min()) / (z[:, latent].max() - z[:, latent].min())
    above, below = 0.0, 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                above += float(a[i] * a[j] * (e[i] @ e[j]))
                below += float(a[i] * a[j])
    return above / below


def test_mono_scores_equal_the_pairwise_definition():
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(9, 4, generator=g).double(), torch.randn(9, 5, generator=g).double()
    scores, valid = losses.mono_scores(x, z)
    assert valid.all()
    for latent in range(5):
        assert scores[latent].item() == pytest.approx(_pairwise(x, z, latent), abs=1e-9)


def _mono_loss(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return losses.mono_loss(*losses.mono_scores(x, z))


def test_mono_loss_is_zero_for_identical_images_and_leaves_constant_latents_out():
    x = torch.ones(4, 3)
    z = torch.tensor([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0], [0.0, 2.0]])
    assert losses.mono_scores(x, z)[1].tolist() == [True, False]
    assert _mono_loss(x, z).item() == pytest.approx(0.0, abs=1e-5)
    assert _mono_loss(x, torch.zeros(4, 2)).item() == 0.0


def test_mono_loss_gradient_matches_finite_differences():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, 4, generator=g).double()
    z = torch.rand(6, 3, generator=g).double().requires_grad_()
    _mono_loss(x, z).backward()
    for i, j in ((0, 0), (3, 1), (5, 2)):
        shift = torch.zeros(6, 3).double()
        shift[i, j] = 1e-6
        slope = (_mono_loss(x, z + shift) - _mono_loss(x, z - shift)) / 2e-6
        assert z.grad[i, j].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-8)


def test_aux_is_exactly_zero_when_nothing_is_dead():
    error = torch.randn(4, 3)
    assert losses.aux(error, torch.zeros(4, 3), torch.zeros(5, dtype=torch.bool)).item() == 0.0


def test_aux_uses_only_dead_latents_and_is_zero_for_a_perfect_fit():
    z_pre = torch.tensor([[5.0, 1.0, 2.0], [5.0, -1.0, 3.0]])
    dead = torch.tensor([False, True, True])
    assert torch.equal(losses.aux_codes(z_pre, dead, 1), torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
    error = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert losses.aux(error, error, dead).item() == 0.0
    assert losses.aux(error, torch.zeros(2, 2), dead).item() == pytest.approx(12.5 / 2.5)
