"""Codes and `scan` on real coders: batch invariance, levels, kept codes, probes and logits."""

import numpy as np
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn.classifier import Classifier
from mtlib.measure import codes
from mtlib.measure.logit import LogitChange, readout
from mtlib.measure.probes import ProbeShift, fit_probe
from mtlib.measure.reconstruction import kept_sizes, level_codes, trained_k
from mtlib.measure.scan import scan
from tests import synthetic
from tests.measure.test_monosemanticity import mono_score
from tests.measure.test_reconstruction import fvu

S, D, HIDDEN = 48, 16, 12


def coder(preset="matryoshka_sae", **more):
    return SparseCoder(
        SparseCoderConfig.preset(preset, D, HIDDEN if "transcoder" in preset else D, n_latents=S, **more)
    )


@pytest.fixture(scope="module")
def data():
    x, manifest, truth = synthetic.table(300, D)
    return x, manifest, truth


@pytest.fixture(scope="module")
def classifier():
    return Classifier(D, HIDDEN).eval()


def run(model, x, target=None, batch=2048, **more):
    rows = np.arange(100, 300)
    return scan(model, x, x if target is None else target, rows, {"train": np.arange(100)}, batch=batch, **more)


def test_matrix_is_sparse_or_dense_with_the_same_products():
    z = torch.zeros(40, 30)
    z[3, 4], z[39, 0] = 2.0, -1.0
    other = np.random.default_rng(0).normal(size=(40, 5))
    sparse, dense = codes.matrix(z), codes.matrix(z + 1)
    assert not isinstance(sparse, np.ndarray) and isinstance(dense, np.ndarray)
    np.testing.assert_allclose(sparse.T @ other, z.double().numpy().T @ other)
    np.testing.assert_allclose(dense.T @ other, (z + 1).double().numpy().T @ other)


def test_counts_hand_computed():
    counts = codes.CodeCounts(3)
    counts.update(torch.tensor([[1.0, 0, 0], [2.0, -1.0, 0]]))
    assert counts.result() == {"l0": 1.5, "sparsity": 0.5, "silent_fraction": pytest.approx(1 / 3)}
    assert counts.fired.tolist() == [2, 1, 0]


def test_keep_largest_by_magnitude():
    z = torch.tensor([[1.0, -3.0, 2.0]])
    assert codes.keep_largest(z, 2).tolist() == [[0.0, -3.0, 2.0]]
    assert codes.keep_largest(z, 5) is z


def test_iter_codes_refuses_no_rows(data):
    with pytest.raises(ValueError, match="at least one row"):
        list(codes.iter_codes(coder(), data[0], np.array([], int)))


@pytest.mark.parametrize("preset", ["matryoshka_sae", "msae_rw", "sae"])
def test_evaluate_does_not_depend_on_batch_size(data, preset):
    x, manifest, _ = data
    classes = np.unique(manifest["class_name"], return_inverse=True)[1]
    model = coder(preset)
    one, many = run(model, x, classes=classes), run(model, x, batch=17, classes=classes)
    assert many.summary == pytest.approx(one.summary, rel=1e-5, nan_ok=True)
    for name in ("latents", "levels", "progressive"):
        np.testing.assert_allclose(getattr(many, name), getattr(one, name), rtol=1e-4, atol=1e-7)


def test_evaluate_equals_the_plain_formulas(data):
    x, model = data[0], coder()
    rows = np.arange(100, 300)
    got = run(model, x)
    with torch.no_grad():
        z, y_hats = model(torch.from_numpy(x[rows]))
    assert got.summary["fvu"] == pytest.approx(fvu(x[rows], y_hats[-1].numpy()))
    assert got.summary["l0"] == pytest.approx(float((z != 0).sum(1).double().mean()))
    np.testing.assert_allclose(got.latents["mono_score"], mono_score(x[rows], z.numpy()), atol=1e-5)
    np.testing.assert_allclose(got.levels["fvu"], [fvu(x[rows], y.numpy()) for y in y_hats], rtol=1e-6)
    prefixes = [float((z[:, :m] != 0).sum(1).double().mean()) for m in model.config.levels]
    np.testing.assert_allclose(got.levels["l0"], prefixes)
    kept = got.progressive.set_index("kept")
    y_16 = model.decode(codes.keep_largest(z, 16)).detach().numpy()
    assert kept.loc[16, "fvu"] == pytest.approx(fvu(x[rows], y_16), rel=1e-6)
    assert kept.loc[S, "fvu"] == pytest.approx(got.summary["fvu"])


@pytest.mark.parametrize("preset", ["topk", "batch_topk", "msae_rw"])
def test_more_codes_than_the_k_of_training_come_from_before_the_selection(data, preset):
    x, rows = torch.from_numpy(data[0]), np.arange(100, 300)
    nested = dict(ks=(4, 16), level_weights=(0.5, 0.5))
    model = coder(preset, soft_cap=2.0, **(nested if preset == "msae_rw" else dict(k=16))).eval()
    got = run(model, data[0]).progressive.set_index("kept")
    assert got["k"].unique().tolist() == [16] and got["l0"].iloc[-1] > 20
    with torch.no_grad():
        before = ((x[rows] - model.b_pre) @ model.W_enc + model.b_enc).relu()
        for kept in (16, 32, S):
            value = before.sort(1, descending=True).values[:, [kept - 1]]
            z = 2 * torch.tanh(before * (before >= value) / 2)
            y_hat = z @ model.W_dec + model.b_dec
            assert got.loc[kept, "fvu"] == pytest.approx(fvu(data[0][rows], y_hat.numpy()), rel=1e-5)
            assert got.loc[kept, "l0"] == pytest.approx(float((z > 0).sum(1).double().mean()))
    if preset != "batch_topk":  # whose threshold, 0 so far, keeps all of them
        assert got.loc[16, "fvu"] == pytest.approx(run(model, data[0]).summary["fvu"])


def test_coders_that_select_otherwise_are_measured_from_their_own_codes():
    assert [trained_k(coder(p)) for p in ("sae", "matryoshka_sae", "relu")] == [6, None, None]
    assert trained_k(coder("matryoshka_transcoder_shared", ks=(32,))) == 32


def test_nested_levels_count_the_codes_they_keep(data):
    model = coder("msae_rw", ks=(2, 5, 9), level_weights=(1, 1, 1))
    z = model.encode(torch.from_numpy(data[0][:50]))
    assert [(level_codes(model.config, z, i) != 0).sum(1).max().item() for i in range(3)] == [2, 5, 9]


@pytest.mark.parametrize("preset", ["topk", "monoloss_batch_topk"])
def test_every_split_is_measured_alike_and_as_published(data, preset):
    x, model = data[0], coder(preset, k=8)
    found = run(model, x).splits
    assert list(found) == ["test", "train"] and found["train"]["n_rows"] == 100
    alone = scan(model, x, x, np.arange(100)).splits["test"]
    assert found["train"] == pytest.approx(alone, nan_ok=True)
    with torch.no_grad():
        y_hat = model.decode(model.encode(torch.from_numpy(x[:100])), -1, torch.from_numpy(x[:100])).double().numpy()
    norm = np.linalg.norm(x[:100].astype(float), axis=1, keepdims=True) if model.config.unit_rows else 1.0
    y, error = x[:100] / norm, (x[:100] - y_hat) / norm
    r2 = (1 - (error**2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)).mean()
    assert found["train"]["r2"] == pytest.approx(r2, rel=1e-5)
    assert found["train"]["l2"] == pytest.approx((error**2).mean(), rel=1e-5)
    assert found["train"]["nmse"] == pytest.approx(((error**2).sum(1) / (y**2).sum(1)).mean(), rel=1e-5)


def test_kept_sizes_double_up_to_all():
    assert kept_sizes(100) == [16, 32, 64, 100]
    assert kept_sizes(16) == [16]


def test_evaluate_transcoder_with_logits_and_probe(data, classifier):
    x, manifest, _ = data
    y, logits = classifier.predict(x)
    labels = manifest["label"].fillna(-1).to_numpy(int)
    probe = fit_probe(y, np.arange(100), labels)
    model = coder("transcoder")
    got = run(model, x, y, probe=probe, readout=readout(classifier, "y")).summary
    rows = np.arange(100, 300)
    with torch.no_grad():
        after = classifier.output(model.decode(model.encode(torch.from_numpy(x[rows])))).numpy()
    assert got["logit_change"] == pytest.approx(np.abs(after - logits[rows]).mean(), rel=1e-5)
    assert got["logit_fvu"] == pytest.approx(((after - logits[rows]) ** 2).mean() / logits[rows].var(), rel=1e-4)
    assert 0 <= got["probe_agreement"] <= 1 and got["probe_kl"] > 0


def test_a_perfect_reconstruction_changes_no_logit_and_no_probe(data, classifier):
    x = torch.from_numpy(data[0])
    labels = data[1]["label"].fillna(-1).to_numpy(int)
    change, shift = LogitChange(readout(classifier, "x")), ProbeShift(fit_probe(data[0], np.arange(200), labels))
    for block in (x[:130], x[130:]):
        for measure in (change, shift):
            measure.update(np.arange(len(block)), block, block)
    assert change.result() == {"logit_change": 0, "logit_fvu": 0, "logit_agreement": 1}
    assert shift.result() == {"probe_kl": pytest.approx(0, abs=1e-12), "probe_agreement": 1}


def test_macro_f1_of_the_probe_by_hand():
    class Signs:  # says class 1 where the first unit is positive
        classes_ = np.array([0, 1])
        predict_proba = staticmethod(lambda y: np.stack([y[:, 0] <= 0, y[:, 0] > 0], 1).astype(float))

    y = torch.tensor([[-1.0], [-1], [1], [1], [1]])
    shift = ProbeShift(Signs(), np.array([0, 0, 1, 1, -1]))
    shift.update(np.arange(3), y[:3], torch.tensor([[1.0], [-1], [1]]))
    shift.update(np.arange(3, 5), y[3:], y[3:])
    found = shift.result()
    assert (found["probe_accuracy"], found["probe_f1"]) == (1, 1)
    assert found["probe_accuracy_rebuilt"] == 3 / 4
    assert found["probe_f1_rebuilt"] == pytest.approx((2 / 3 + 4 / 5) / 2)  # of class 0 and of class 1


def test_evaluate_refuses_a_target_of_another_shape(data):
    with pytest.raises(ValueError, match=r"expected \(300, 16\)"):
        run(coder(), data[0], data[0][:, :5])
