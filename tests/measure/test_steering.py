"""Steering: the step against the formula, nothing at factor 1, the forward pass against a hook written by hand."""

import numpy as np
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import sources, store
from mtlib.embed.encoders import Encoder
from mtlib.embed.images import load_image
from mtlib.judge.text_space import text_verdict
from mtlib.measure.steering import COLUMNS, Steering, step_of
from mtlib.measure.zero_shot import zero_shot_task

D, S, K = 128, 48, 8


@pytest.fixture(scope="module")
def inner(tmp_path_factory):
    """A coder with random weights of an inner layer of the bundled encoder, on a few scenes."""
    out = tmp_path_factory.mktemp("run")
    encoder = Encoder.load("demo", device="cpu", layer="trunk.level4", tokens="patches")
    config = sources.EmbedConfig(n_scenes=72, n_per_generator=0, workers=1)
    truth = sources.render_scenes(config, out)
    _, facts = sources.from_images(config, encoder, out / "images", out, truth)
    data = store.load_parts(out, facts)
    return Steering(data, encoder, coder(), zero_shot_task(data)[0], None, text_verdict(data))


def coder(**settings):
    return SparseCoder(SparseCoderConfig(d_in=D, d_out=D, n_latents=S, selection="topk", ks=(K,), **settings)).eval()


def noise(n):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_step_is_what_the_features_add_and_a_control_has_its_length():
    own, x = coder(), noise(20)
    z = own.encode(x)
    a, b = z.sum(0).argsort(descending=True)[:2].tolist()
    assert (z[:, a] > 0).any() and (z[:, a] == 0).any()
    torch.testing.assert_close(step_of(own, x, [a]), z[:, [a]] * own.W_dec[a], atol=1e-5, rtol=1e-4)
    both = z[:, [a]] * own.W_dec[a] + z[:, [b]] * own.W_dec[b]
    torch.testing.assert_close(step_of(own, x, [a, b]), both, atol=1e-5, rtol=1e-4)
    control = step_of(own, x, [a], [3])
    torch.testing.assert_close(control.norm(dim=1), step_of(own, x, [a]).norm(dim=1))
    along = torch.nn.functional.cosine_similarity(control, own.W_dec[3][None])[z[:, a] > 0]
    torch.testing.assert_close(along, torch.ones_like(along))


@torch.no_grad()
def test_step_follows_the_scaling_of_inputs_and_targets():
    """Rows that are scaled by themselves get their step in their own units."""
    own, x = coder(scale="rows"), noise(6)
    j = int(own.encode(x).sum(0).argmax())
    torch.testing.assert_close(step_of(own, 5 * x, [j]), 5 * step_of(own, x, [j]), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_forward_pass_goes_on_from_the_changed_activation(inner):
    rows = inner.data.rows("test")[::16][:6]
    x = torch.from_numpy(np.array(inner.data.x[rows[0] : rows[0] + 16]))
    j = int(inner.coder.encode(x).sum(0).argmax())
    e = inner.embeddings(rows, [j], [1.0, 0.0])
    np.testing.assert_allclose(e[0], inner.data.embedding_at(rows), atol=1e-4)
    pixels = torch.stack([inner.encoder.preprocess(load_image(inner.data.images(r))[0]) for r in rows])

    def without(_module, _inputs, out):  # (B, C, H, W)
        tokens = out.flatten(2).transpose(1, 2).reshape(-1, D)
        changed = tokens - inner.coder.encode(tokens)[:, [j]] * inner.coder.W_dec[j]
        return changed.reshape(len(out), -1, D).transpose(1, 2).reshape(out.shape)

    hook = inner.encoder.place.module.register_forward_hook(without)
    try:
        expected = inner.encoder.encode_tensors(pixels)
    finally:
        hook.remove()
    np.testing.assert_allclose(e[1], expected, atol=1e-4)
    assert not np.allclose(e[0], e[1], atol=1e-4)


def test_reading_of_nothing_changed_and_neighbours_of_other_scenes(inner):
    rows = inner.data.rows("test")[::16][:8]
    e = np.asarray(inner.data.embedding_at(rows))
    read = inner.read(rows, e, e)
    assert (read["n"], read["class_kept"], read["neighbours_kept"]) == (8, 1, 1)
    assert read["probability"] == pytest.approx(inner.probabilities(e).max(axis=1).mean())
    assert np.isnan(read["logit"]) and 0 <= read["error_by_text"] <= 1
    away = inner.read(rows, e, -e)
    assert away["class_kept"] == 0 and away["probability"] < 0.01
    groups = inner.data.manifest["group"].to_numpy(str)
    near = inner.neighbours(e, rows)
    assert near.shape == (8, 10) and not (groups[near] == groups[rows][:, None]).any()
    assert set(inner.data.manifest["split"].to_numpy()[near.ravel()]) <= {"train", "val"}


def test_table_has_a_line_per_direction_and_factor(inner):
    rows = inner.data.rows("test")[::16][:4]
    table = inner.table({5: rows}, np.arange(S), [0.0, 1.0], n_controls=2, groups={5: [5, 6]})
    assert list(table) == COLUMNS and table["direction"].unique().tolist() == [
        "feature",
        "control",
        "group",
        "group control",
    ]
    same = table[table["factor"] == 1]
    assert (same["class_kept"] == 1).all() and np.allclose(same["neighbours_kept"], 1)
