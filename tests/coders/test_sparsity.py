"""Each sparsity against cases worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlib.coders import sparsity

Z = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.0, 4.0, 2.0, 0.0]])


def test_jumprelu_fixed_adds_the_jump_above_gamma():
    expected = torch.tensor([[1.0, 0.0, 4.0, 0.5], [0.0, 5.0, 3.0, 0.0]])
    assert torch.equal(sparsity.jumprelu_fixed(Z, gamma=1.0, beta=1.0), expected)


def test_jumprelu_zeroes_at_and_below_theta():
    theta = torch.tensor([0.5, 0.5, 3.0, 0.5])
    expected = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
    assert torch.equal(sparsity.jumprelu(Z, theta, 0.1), expected)


def test_jumprelu_theta_gradient_is_the_rectangle_estimate():
    z_pre = torch.tensor([[1.0, 2.0], [1.2, 0.0]], requires_grad=True)
    theta = torch.tensor([1.1, 1.0], requires_grad=True)
    (sparsity.jumprelu(z_pre, theta, 0.5) * torch.tensor([[2.0, 1.0], [3.0, 1.0]])).sum().backward()
    # column 0: both rows lie within 0.25 of theta: -(1.1 / 0.5) * (2 + 3); column 1: none does
    torch.testing.assert_close(theta.grad, torch.tensor([-11.0, 0.0]))
    assert torch.equal(z_pre.grad, torch.tensor([[0.0, 1.0], [3.0, 0.0]]))


def test_step_counts_and_pushes_theta_up_only_inside_the_window():
    z_pre, theta = torch.tensor([[1.0, 2.0], [1.2, 0.0]]), torch.tensor([1.1, 1.0], requires_grad=True)
    count = sparsity.step(z_pre, theta, 0.5).sum(-1)
    assert count.tolist() == [1.0, 1.0]
    count.sum().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([-4.0, 0.0]))


def test_topk_keeps_the_largest_of_each_row():
    z = Z.relu()
    assert torch.equal(sparsity.topk(z, 1), torch.tensor([[0, 0, 3.0, 0], [0, 4.0, 0, 0]]))
    assert torch.equal(sparsity.topk(z, 4), z)


def test_block_topk_selects_inside_each_new_block():
    expected = torch.tensor([[1.0, 0, 3.0, 0], [0, 4.0, 2.0, 0]])
    assert torch.equal(sparsity.block_topk(Z.relu(), levels=(2, 4), ks=(1, 1)), expected)


def test_batch_topk_shares_the_budget_over_the_batch():
    z, smallest = sparsity.batch_topk(torch.tensor([[1.0, 2.0, 9.0], [0.1, 0.2, 0.3]]), k=1)
    assert torch.equal(z, torch.tensor([[0.0, 2.0, 9.0], [0.0, 0.0, 0.0]]))
    assert smallest.item() == 2.0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 10_000), st.data())
def test_threshold_for_l0_keeps_exactly_that_many(n, s, seed, data):
    z = torch.from_numpy(np.random.default_rng(seed).random((n, s))).relu()
    l0 = data.draw(st.integers(1, s))
    kept = sparsity.above(z, sparsity.threshold_for_l0(z, l0).expand(s))
    assert int((kept != 0).sum()) == l0 * n


def test_threshold_for_l0_is_zero_when_codes_are_sparser():
    assert sparsity.threshold_for_l0(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 1.0).item() == 0.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_topk_gradient_flows_only_through_kept_values(k):
    z = Z.relu().requires_grad_()
    sparsity.topk(z, k).sum().backward()
    assert ((z.grad != 0).sum(-1) == k).all()
