"""The files that MSAE's scripts write: names, layouts and numbers, beside a plain rewriting."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtlib.coders.published import read_published
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import arrays, store
from mtlib.features import msae_files
from mtlib.measure.codes import Subject
from tests import synthetic
from tests.coders import checkpoints

D, S, V = 16, 48, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    found = store.load_data(synthetic.write_embed_stage(tmp_path_factory.mktemp("run"), 120, D, images=False))
    return replace(found, vocabulary=np.random.default_rng(0).normal(size=(V, D)).astype(np.float32))


@pytest.fixture(scope="module", params=["TopKReLU_4", "TopKReLU_4_RW", "BatchTopKReLU_4"])
def written(request, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    file = checkpoints.msae(folder, D, S, request.param, cap=3.0).path
    subject = Subject("theirs", 0, "", "x", read_published(file))
    given = {"embeddings": f"data/cc3m_ViT-L~14_validation_image_{len(data.x)}_{D}.npy", "vocabulary": "words.npy"}
    return folder, file, msae_files.write_all(folder, data, [subject], given)


def plain(file, x):
    """All codes before the selection, and what decodes codes, from the file alone."""
    saved = torch.load(file, weights_only=False)
    w = {name: value.double().numpy() for name, value in saved["model"].items()}
    mean, scale = np.asarray(saved["mean_center"], np.float64), float(saved["scaling_factor"])
    pre = ((x - mean) * scale - w["pre_bias"]) @ w["encoder"] + w["latent_bias"]
    return 3 * np.tanh(np.maximum(pre, 0) / 3), lambda z: (z @ w["decoder"] + w["pre_bias"]) / scale + mean, w


def test_names_are_the_scripts_own(written, data):
    folder, file, table = written
    source, n = f"cc3m_ViT-L~14_validation_image_{len(data.x)}_{D}", len(data.x)
    stem = f"{source}_{file.name.removesuffix('.pth')}h"  # their ".pt" is removed, the h stays
    names = [f"arrays/{stem}_repr_{n}_{S}.npy", f"arrays/{stem}_output_{n}_{D}.npy", f"published/{stem}.json"]
    names += [f"arrays/Concept_Interpreter_{file.name.removesuffix('.pth')}_words.npy"]
    assert table["file"].tolist() == names and table["rows"].tolist()[:2] == [n, n]
    assert all((folder / name).is_file() for name in names)


def test_codes_are_all_of_them_in_plain_float32(written, data):
    folder, file, table = written
    codes, outputs = (np.fromfile(folder / name, "<f4") for name in table["file"][:2])
    z, decode, _ = plain(file, np.asarray(data.x, np.float64))
    np.testing.assert_allclose(codes.reshape(len(data.x), S), z, atol=1e-4)
    np.testing.assert_allclose(outputs.reshape(len(data.x), D), decode(z), rtol=1e-3, atol=1e-3)
    # what is written is what `embeddings = ...` reads: sizes stand in the name
    again = arrays.checked(folder / table["file"][1], "embeddings", folder / "scratch")
    np.testing.assert_array_equal(again, outputs.reshape(len(data.x), D))


def test_scores_at_every_k_are_means_over_rows(written, data):
    folder, file, table = written
    found, x = json.loads((folder / table["file"][2]).read_text()), np.asarray(data.x, np.float64)
    assert list(found) == ["16", "32", "48"] and np.isnan(found["16"]["cknnas"][0])
    z, decode, _ = plain(file, x)
    z = checkpoints.largest(z, 16)
    fvu = (x - decode(z)).var(1, ddof=1) / x.var(1, ddof=1)
    assert found["16"]["fvu"] == pytest.approx([fvu.mean(), fvu.std()], rel=1e-4)
    mae = np.abs(x - decode(z)).mean(1) / np.abs(x).mean(1)
    assert found["16"]["mae"] == pytest.approx([mae.mean(), mae.std()], rel=1e-4)
    assert found["16"]["l0"] == pytest.approx([(z == 0).mean(), (z == 0).mean(1).std()], rel=1e-6)
    assert found["16"]["number_of_dead_neurons"] == (z == 0).all(0).sum()


def test_cknna_takes_whole_batches_of_rows(data):
    coder = SparseCoder(SparseCoderConfig.preset("topk", D, D, n_latents=S, k=4)).eval()
    found = msae_files.scores(coder, np.asarray(data.x[:100]), cknna_rows=40)["16"]["cknnas"]
    assert 0 < found[0] <= 1 and found[1] > 0  # of two batches of 40; the last 20 rows are in none


def test_naming_matrix_is_the_cosine_of_raw_phrases_and_decoder_rows(written, data):
    folder, file, table = written
    found = np.load(folder / table["file"][3])
    assert found.dtype == np.float32 and found.shape == (V, S)
    decoder = plain(file, np.zeros((1, D)))[2]["decoder"]
    v = data.vocabulary.astype(np.float64)
    cosine = v @ decoder.T / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(decoder, axis=1)
    np.testing.assert_allclose(found, cosine, atol=1e-6)
