"""The same coders on other data: nothing is fitted again, and the measures are those of notebook 04."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.coders.published import read_published
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import store
from mtlib.embed.manifest import InputError
from mtlib.features import other_data
from mtlib.measure.codes import Subject
from mtlib.measure.scan import scan
from tests import synthetic
from tests.coders import checkpoints

D = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return store.load_data(synthetic.write_embed_stage(tmp_path_factory.mktemp("run"), 500, D, images=False))


@pytest.fixture(scope="module")
def subjects():
    return [
        Subject("topk", 0, "topk", "x", SparseCoder(SparseCoderConfig.preset("topk", D, D, n_latents=64, k=16)).eval())
    ]


def test_generators_images_are_the_second_set_where_none_is_given(data, tmp_path):
    found = other_data.second_images(data, "", tmp_path, tmp_path)
    rows = data.rows("unlabelled")
    assert (found is None) == (len(rows) < other_data.MIN_ROWS)
    marked = replace(
        data, manifest=data.manifest.assign(split=np.where(np.arange(len(data.x)) < 50, "unlabelled", "train"))
    )
    found = other_data.second_images(marked, "", tmp_path, tmp_path)
    assert found.rows.tolist() == marked.rows("unlabelled").tolist() and "50 images" in found.what
    assert (
        other_data.second_images(replace(data, manifest=data.manifest.assign(split="train")), "", tmp_path, tmp_path)
        is None
    )


def test_given_arrays_are_measured_as_they_are(data, subjects, tmp_path):
    x = np.random.default_rng(1).normal(size=(60, D)).astype(np.float32)
    np.save(tmp_path / "other.npy", x)
    second = other_data.second_images(data, "other.npy", tmp_path, tmp_path)
    text = other_data.texts(data, "other.npy", tmp_path, tmp_path)
    found = other_data.evaluate_on([second, text], data, subjects)
    assert [name for name, _, _ in found] == ["second", "text"]
    assert found[0][2].summary["fvu"] == pytest.approx(scan(subjects[0].coder, x, x, np.arange(60)).summary["fvu"])
    lengths = [np.linalg.norm(a, axis=1).mean() for a in (text.x, data.x[data.rows("train")])]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)  # one number for all texts
    np.testing.assert_allclose(text.x / x, text.x[0, 0] / x[0, 0], rtol=1e-4)
    assert 0 <= found[0][2].summary["probe_agreement"] <= 1  # the probe is that of the run's train rows
    np.save(tmp_path / "wide.npy", np.ones((60, D + 1), np.float32))
    with pytest.raises(InputError, match="embeddings are 16 wide"):
        other_data.second_images(data, "wide.npy", tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["other.npz", "cc3m_ViT_validation_text_60_16.npy"])
def test_arrays_may_be_of_every_kind_that_embeddings_takes(data, tmp_path, name):
    x = np.random.default_rng(1).normal(size=(60, D)).astype(np.float32)
    np.savez(tmp_path / name, x) if name.endswith(".npz") else x.tofile(tmp_path / name)
    second = other_data.second_images(data, name, tmp_path, tmp_path / "made")
    text = other_data.texts(data, name, tmp_path, tmp_path / "made")
    assert np.array_equal(second.x, x)
    np.testing.assert_allclose(text.x / x, text.x[0, 0] / x[0, 0], rtol=1e-4)


def test_a_folder_needs_an_encoder(data, tmp_path):
    bare = replace(data, facts=data.facts | {"encoder": {"name": ""}})
    with pytest.raises(InputError, match="embeddings only"):
        other_data.second_images(bare, "photos", tmp_path, tmp_path)


def test_centred_texts_have_the_images_mean_and_their_own_differences(data):
    many = replace(data, vocabulary=np.random.default_rng(0).normal(size=(40, D)).astype(np.float32) + 3)
    text = other_data.texts(many, "", None, None)
    moved = other_data.centred(many, text)
    np.testing.assert_allclose(moved.x.mean(0), data.x[data.rows("train")].mean(0), atol=1e-5)
    np.testing.assert_allclose(moved.x - moved.x[0], text.x - text.x[0], atol=1e-5)
    few = replace(data, vocabulary=data.vocabulary[:5], manifest=data.manifest.assign(split="train"))
    assert other_data.texts(few, "", None, None) is None
    assert [s.name for s in other_data.other_sets(many, "", "", None, None)][-2:] == ["text", "text, centred"]
    assert other_data.other_sets(few, "", "", None, None) == []


def test_texts_with_their_own_centring_reach_a_published_coder_in_its_units(data, tmp_path):
    """MSAE's -dm: (t - mean(t)) * sqrt(D) / rms norm of that, in place of the mean and scaling_factor of the checkpoint."""
    written = checkpoints.msae(tmp_path, D, 48, "TopKReLU_8")
    coder = read_published(written.path)
    t = np.random.default_rng(2).normal(size=(90, D)) * 5 + 3
    np.save(tmp_path / "captions.npy", t.astype(np.float32))
    sets = other_data.other_sets(data, "", "captions.npy", tmp_path, tmp_path, "own")
    assert [s.name for s in sets][-2:] == ["text", "text, own centring"]
    x = other_data.brought(coder, sets[-1].x, sets[-1].rows)
    with torch.no_grad():
        units = coder._inputs(torch.from_numpy(x)).numpy()
    centred = t - t.mean(0)
    np.testing.assert_allclose(units, centred * np.sqrt(D / (centred**2).sum(1).mean()), atol=1e-4)
    subject = Subject("theirs", 0, "", "x", coder)
    found = other_data.evaluate_on(sets[-1:], data, [subject])[0][2].summary
    assert found["fvu"] == pytest.approx(scan(coder, x, x, np.arange(90)).summary["fvu"])
    coder.x_mean.zero_(), coder.x_scale.fill_(1)
    np.testing.assert_allclose(other_data.brought(coder, t, np.arange(90)), t, rtol=1e-6)
    with pytest.raises(ValueError, match="text_centring = 'theirs': must be shift or own"):
        other_data.other_sets(data, "", "captions.npy", tmp_path, tmp_path, "theirs")


def test_tables_put_the_runs_own_test_images_first_and_only_these_coders(data, subjects, tmp_path):
    found = other_data.evaluate_on([other_data.OtherData("text", "", data.x, np.arange(100))], data, subjects)
    test = pd.DataFrame({"method": ["topk", "topk", "sae"], "seed": [0, 1, 0], "fvu": [0.1, 0.2, 0.3], "l0": 4.0})
    table = other_data.beside_test(found, test, "summary")
    assert table["data"].tolist() == ["test", "text"] and table["fvu"].iloc[0] == 0.1
    steps = test.assign(target="x", l0_target=4, kept=16)
    curve = other_data.beside_test(found, steps, "progressive")
    assert (curve["data"] == "test").sum() == 1
    own = curve[curve["data"] == "text"]
    assert own["kept"].tolist() == [16, 32, 64] and own["fvu"].iloc[0] == pytest.approx(table["fvu"].iloc[1])


def test_a_folder_of_images_is_embedded_by_the_runs_encoder(data, tmp_path):
    from mtlib.embed.encoders import Encoder
    from mtlib.embed.images import load_image
    from mtlib.scenes.dataset import write_dataset

    write_dataset(tmp_path / "scenes", n_scenes=36, seed=5, n_per_generator=0, workers=1)
    tower = Encoder.load("demo")
    own = replace(data, x=np.zeros((3, tower.d_in), np.float32), facts=data.facts | {"encoder": tower.record})
    found = other_data.second_images(own, "scenes", tmp_path, tmp_path / "out")
    assert found.x.shape == (36, tower.d_in) and len(found.rows) <= 36 and "images of scenes" in found.what
    listed = store.load_parts(tmp_path / "out", {"image_root": str(tmp_path / "scenes")})
    first = tower.encode_images([load_image(listed.images(0))[0]])
    np.testing.assert_allclose(found.x[:1], first, rtol=1e-3, atol=1e-3)
