"""Causal relevance by hand, exactness for a transcoder, and controls of the same norm."""

import numpy as np
import pytest
import torch
from torch import nn

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn.batches import Rows, set_statistics
from mtlib.learn.classifier import Classifier
from mtlib.measure.logit import causal_relevance, chosen, control_directions, steer
from tests.features.standins import LinearCoder


class Head(nn.Module):
    """logit = relu(x W) . w, as the classifier computes it."""

    def __init__(self, W, w):
        super().__init__()
        self.W, self.w_logit = torch.as_tensor(W).float(), torch.as_tensor(w).float()

    def hidden(self, x):
        return (x @ self.W).relu()

    def forward(self, x):
        return self.hidden(x) @ self.w_logit


def run(coder, head, target, x, **kwargs):
    return causal_relevance(coder, head, x, np.arange(len(x)), target, batch=3, **kwargs)


def test_transcoder_change_by_hand():
    x = np.array([[1.0, 0.0], [3.0, 2.0]], dtype=np.float32)
    coder = LinearCoder(np.eye(2), [[1.0, 0.0], [0.5, 2.0]])
    head = Head(np.eye(2), [2.0, -1.0])
    found = run(coder, head, "y", x)
    # feature 0: mean z = 2, W_dec . w = 2 -> -4; feature 1 fires on the second row only: z = 2, W_dec . w = -1 -> +2
    np.testing.assert_allclose(found["causal_relevance"], [-4.0, 2.0])


def test_transcoder_change_equals_removal_from_its_output():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    coder = LinearCoder(rng.normal(size=(6, 9)), rng.normal(size=(9, 5)))
    found = run(coder, Head(rng.normal(size=(6, 5)), w), "y", x)
    z = coder.encode(torch.from_numpy(x))
    for j in range(9):
        on = z[:, j] > 0
        without = z.clone()
        without[:, j] = 0
        change = ((coder.decode(without) - coder.decode(z)) @ torch.from_numpy(w))[on].mean()
        assert found["causal_relevance"][j] == pytest.approx(float(change), rel=1e-4)


def test_autoencoder_change_is_a_forward_pass():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    coder = LinearCoder(rng.normal(size=(6, 4)), rng.normal(size=(4, 6)))
    head = Head(rng.normal(size=(6, 5)), rng.normal(size=5))
    found = run(coder, head, "x", x)
    z, t = coder.encode(torch.from_numpy(x)), torch.from_numpy(x)
    for j in range(4):
        on = z[:, j] > 0
        change = (head(t - z[:, j, None] * coder.W_dec[j]) - head(t))[on].mean()
        assert found["causal_relevance"][j] == pytest.approx(float(change), rel=1e-4)


def test_rows_scaled_by_themselves_lose_their_own_step():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 16)) * rng.uniform(0.2, 3, (200, 1))).astype(np.float32)
    coder = SparseCoder(SparseCoderConfig.preset("monoloss_jumprelu", 16, 16, n_latents=32)).eval()
    rows = Rows(x, np.arange(200), torch.device("cpu"))
    set_statistics(coder, rows, rows)
    head, t = Head(rng.normal(size=(16, 5)), rng.normal(size=5)), torch.from_numpy(x)
    found = run(coder, head, "x", x, n_controls=1)["causal_relevance"]
    z = coder.encode(t).detach()
    for j in range(8):
        without = z.clone()
        without[:, j] = 0
        removed = t - (coder.decode(z, x=t) - coder.decode(without, x=t)).detach()
        change = (head(removed) - head(t))[z[:, j] > 0].mean()
        assert found[j] == pytest.approx(float(change), rel=1e-3)
        steered = steer(coder, t, t, j, [0.0], head)[0] - head(t)
        assert float(steered[z[:, j] > 0].mean()) == pytest.approx(float(change), rel=1e-3)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_real_classifier_is_removed_from_as_in_a_forward_pass(n_outputs):
    torch.manual_seed(0)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    coder = LinearCoder(rng.normal(size=(6, 4)), rng.normal(size=(4, 6)))
    head = Classifier(6, 5, n_outputs).eval()
    head.x_mean.normal_(), head.x_scale.uniform_(0.5, 2)
    found = run(coder, head, "x", x, share=1.0)
    z, t = coder.encode(torch.from_numpy(x)), torch.from_numpy(x)
    before = head(t).reshape(60, -1)
    followed = before.argmax(1, keepdim=True)
    for j in range(4):
        on = z[:, j] > 0
        after = head(t - z[:, j, None] * coder.W_dec[j]).reshape(60, -1)
        change = (after - before).gather(1, followed)[on].mean()
        assert found["causal_relevance"][j] == pytest.approx(change.item(), rel=1e-3, abs=1e-6)


def test_several_logits_follow_the_predicted_class():
    x = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    coder = LinearCoder(np.eye(2), np.eye(2))
    head = Head(np.eye(2), [[3.0, 0.0], [0.0, 5.0]])  # two classes
    np.testing.assert_allclose(run(coder, head, "y", x)["causal_relevance"], [-3.0, -5.0])
    np.testing.assert_allclose(run(coder, head, "x", x)["causal_relevance"], [-3.0, -5.0])


def test_controls_have_the_norm_and_are_never_the_feature():
    rng = np.random.default_rng(2)
    coder = LinearCoder(rng.normal(size=(3, 7)), rng.normal(size=(7, 3)))
    controls = control_directions(coder.W_dec)
    for directions in controls.values():
        torch.testing.assert_close(directions.norm(dim=2), coder.W_dec.norm(dim=1).expand(8, 7))
    unit = torch.nn.functional.normalize(coder.W_dec, dim=1)
    cosines = (torch.nn.functional.normalize(controls["latents"], dim=2) * unit).sum(dim=2)
    assert (cosines < 0.9999).all()


def test_feature_that_never_fires_is_nan():
    coder = LinearCoder(np.eye(2), np.eye(2), b_enc=torch.tensor([0.0, -100.0]))
    found = run(coder, Head(np.eye(2), np.ones(2)), "x", np.ones((4, 2), dtype=np.float32), share=1.0)
    assert np.isfinite(found.loc[0]).all() and found.loc[1].isna().all()


def test_row_choice_does_not_depend_on_batches():
    rows = np.arange(20_000)
    all_at_once = chosen(rows, 0.25)
    np.testing.assert_array_equal(all_at_once, np.concatenate([chosen(r, 0.25) for r in np.array_split(rows, 13)]))
    assert 0.23 < all_at_once.mean() < 0.27


def topk_coder(seed=0):
    config = SparseCoderConfig(d_in=8, d_out=8, n_latents=24, selection="topk", ks=(4,))
    return SparseCoder(config, seed).eval()


@pytest.mark.parametrize("target", ["x", "y"])
def test_steering_equals_the_forward_pass_of_the_changed_activation(target):
    torch.manual_seed(1)
    classifier = Classifier(8, 6).eval()
    x = torch.randn(10, 8)
    h = x if target == "x" else classifier.hidden(x).detach()
    preset = "sae" if target == "x" else "transcoder"
    coder = SparseCoder(SparseCoderConfig.preset(preset, 8, h.shape[1], n_latents=24)).eval()
    readout = classifier if target == "x" else classifier.output
    j = int(coder.encode(x).sum(0).argmax())
    got = steer(coder, x, h, j, (0, 1, 2), readout)
    with torch.no_grad():
        step = coder.encode(x)[:, [j]] * coder.W_dec[j]
        torch.testing.assert_close(got, torch.stack([readout(h - step), readout(h), readout(h + step)]))
    if target == "y":  # exact for a transcoder: -z_j W_dec_j . w_logit
        torch.testing.assert_close(got[0] - got[1], -(step @ classifier.w_logit).detach())


def test_steering_control_has_the_norm_of_the_feature():
    coder, x = topk_coder(), torch.randn(4, 8)
    j = int(coder.encode(x).sum(0).argmax())
    d = torch.randn(8)
    own, other = (steer(coder, x, x, j, (2,), lambda h: (h - x).norm(dim=1), w) for w in (None, d))
    torch.testing.assert_close(own, other)
    aligned = steer(coder, x, x, j, (2,), lambda h: h, coder.W_dec[j] * 7)
    torch.testing.assert_close(aligned, steer(coder, x, x, j, (2,), lambda h: h))
