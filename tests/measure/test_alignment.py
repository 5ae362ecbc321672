"""Two seeds, latent by latent."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mtlib.coders.published import read_published
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.measure.codes import Subject
from mtlib.measure.similarity import align, matched, stability
from tests.coders import checkpoints


def _subject(seed: int, order=None, method: str = "topk") -> Subject:
    coder = SparseCoder(SparseCoderConfig.preset("topk", 6, 6, n_latents=32), seed)
    if order is not None:
        with torch.no_grad():
            coder.enc.copy_(coder.enc[:, order]), coder.dec[0].copy_(coder.dec[0][order])
    return Subject(method, seed, "topk", "x", coder)


def test_matching_by_hand():
    a, b = np.array([[1.0, 0], [0, 1]]), np.array([[0, 3.0], [4, 3]])
    _, partner, cosine = matched(a, b)  # row 0 with (4, 3): 0.8; row 1 with (0, 3): 1
    assert partner.tolist() == [1, 0]
    np.testing.assert_allclose(cosine, [0.8, 1.0])
    with pytest.raises(ValueError, match="cannot be matched"):
        matched(a, np.ones((3, 3)))


def test_matching_is_what_stability_is_the_mean_of():
    a, b = np.random.default_rng(0).normal(size=(2, 20, 5))
    assert matched(a, b)[2].mean() == pytest.approx(stability(a, b))


def test_permuted_coder_is_the_same_and_another_seed_is_not():
    order = np.random.default_rng(1).permutation(32)
    one = align([_subject(0), _subject(0, order)]).iloc[0]
    assert one[["decoder", "encoder", "decoder_shared", "both_shared"]].tolist() == pytest.approx([1, 1, 1, 1])
    other = align([_subject(0), _subject(1)]).iloc[0]
    assert (
        other["decoder"] < 0.9
        and other["both_shared"] < 1
        and other["decoder"] == pytest.approx(other["chance"], abs=0.1)
    )


def test_disagreeing_matchings_share_nothing():
    a, b = _subject(0), _subject(0)
    with torch.no_grad():
        b.coder.dec[0].copy_(b.coder.dec[0].roll(1, 0))  # latent j writes what j - 1 wrote and reads what j read
    line = align([a, b]).iloc[0]
    assert line[["decoder", "encoder"]].tolist() == pytest.approx([1, 1]) and line["both_shared"] == 0


def test_two_files_are_matched_like_two_seeds(tmp_path):
    """As MSAE's alignment of two files: Hungarian on unit decoder rows, and on unit encoder columns."""
    files = [checkpoints.msae(tmp_path, 6, 24 + 8 * i, "TopKReLU_4", seed=i).path for i in range(2)]
    theirs = [Subject(f"file{i}", 0, "", "x", read_published(path)) for i, path in enumerate(files)]
    found = align([*theirs[::-1], _subject(0)])
    assert found["method"].tolist() == ["file0 | file1"] and found["n_latents"].tolist() == [24]
    saved = [torch.load(path, weights_only=False)["model"] for path in files]
    for what, rows in {"decoder": lambda s: s["decoder"], "encoder": lambda s: s["encoder"].T}.items():
        a, b = (rows(s).double().numpy() for s in saved)
        cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
        row, column = linear_sum_assignment(-cosine)
        assert found[what].iloc[0] == pytest.approx(cosine[row, column].mean(), rel=1e-6)


def test_every_pair_of_seeds_of_every_method():
    frame = align([_subject(s, method=m) for m in ("a", "b") for s in (0, 1, 2)] + [_subject(0, method="alone")])
    assert frame.groupby("method").size().to_dict() == {"a": 3, "b": 3}
