"""Names and neighbours where the concepts are planted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import store
from mtlib.features import concepts
from tests import synthetic

D, S = 24, 6
WORDS = ["dog", "cat", "car", "sea", "hat", "elm", "fog", "ink"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(data, coder): word j is direction j; latents 0 to 3 write words 0 to 3, latents 4 and 5 write nothing with a name."""
    data = store.load_data(synthetic.write_embed_stage(tmp_path_factory.mktemp("run"), 600, D, images=False))
    rng = np.random.default_rng(0)
    of = rng.integers(0, 4, len(data.x))
    x = rng.normal(size=(len(data.x), D)) * 0.3
    x[np.arange(len(x)), of] += 3
    phrases = pd.DataFrame({"phrase": WORDS, "kind": "word", "family": "", "cause": ""})
    manifest = data.manifest.assign(class_name=np.array(WORDS)[of])
    coder = SparseCoder(SparseCoderConfig(d_in=D, d_out=D, n_latents=S, selection="none", penalty="none"))
    with torch.no_grad():
        coder.enc.zero_(), coder.dec[0].zero_(), coder.enc_bias.fill_(-1.0)
        for j in range(S):
            coder.enc[j if j < 4 else j + 10, j] = 1.0
            coder.dec[0][j, j if j < 4 else j + 10] = 2.0
        coder.dec[0][0, 1] = 0.5  # a little of the cat
        coder.dec[0][2, 20], coder.dec[0][3, 21] = 0.1, 0.15  # of no word: no two latents are equally near to theirs
    x = x.astype(np.float32)
    return (
        replace(data, x=x, vocabulary=np.eye(8, D, dtype=np.float32), phrases=phrases, manifest=manifest),
        coder.eval(),
        of,
    )


def test_names_are_the_nearest_phrase_and_count_beyond_chance_only(planted):
    data, coder, _ = planted
    named = concepts.name_latents(coder, data)
    assert 0.3 < named["threshold"].iloc[0] < 0.9
    valid = named[named["named"]]
    assert valid.sort_values("cosine", ascending=False)["phrase"].tolist() == ["cat", "car", "sea", "dog"]
    first = named.iloc[0]
    text = np.eye(8)[0] - 1 / 8  # the dog, less what all words share
    assert first["cosine"] == pytest.approx((2 * text[0] + 0.5 * text[1]) / np.linalg.norm(text) / np.hypot(2, 0.5))
    assert first["runner_up"] == "cat" and first["ratio"] > 2
    assert not named["named"].iloc[4:].any()
    assert valid["nearer"].min() > 0.8
    assert concepts.name_latents(coder, data, threshold=0.93).query("named")["phrase"].tolist() == ["cat", "car", "sea"]


def test_encoder_names_read_the_encoder(planted):
    data, coder, _ = planted
    by_encoder = concepts.name_latents(coder, data, "encoder")
    assert by_encoder["cosine"].iloc[0] == pytest.approx(np.sqrt(7 / 8)) and by_encoder["phrase"].iloc[0] == "dog"


def test_summary_counts_names(planted):
    data, coder, _ = planted
    line = concepts.naming_summary(concepts.name_latents(coder, data).assign(method="sae", by="decoder")).iloc[0]
    assert (line["n_named"], line["n_names"], line["n_latents"]) == (4, 4, S) and line["nearer"] > line["nearer_other"]


def test_chance_is_rarely_exceeded_by_random_directions():
    texts = np.eye(8, D)
    random = np.random.default_rng(9).normal(size=(5000, D))
    nearest = (random / np.linalg.norm(random, axis=1, keepdims=True) @ texts.T).max(1)
    assert (nearest > concepts.chance_cosine(texts)).mean() == pytest.approx(0.01, abs=0.006)


def test_neighbours_by_hand():
    rows = np.array([[1.0, 0], [2, 0.1], [0, 1], [0, 5]])
    assert concepts.neighbours(rows, 1)[:, 0].tolist() == [1, 0, 3, 2]
    assert concepts.neighbours(rows, 2).shape == (4, 2)


def test_search_finds_the_same_concept_and_says_which(planted):
    data, coder, of = planted
    found = concepts.search(coder, data, k=4)
    quality = concepts.search_quality(found, of)
    assert (
        quality["same_codes"] > 0.95
        and quality["same_embedding"] > 0.9
        and quality["same_chance"] == pytest.approx(0.25, abs=0.03)
    )
    assert "same_codes" not in concepts.search_quality(found, None)
    shown = concepts.shown_queries(found, data, concepts.name_latents(coder, data), n=5)
    codes = shown[shown["by"] == "codes"]
    assert len(shown) == 5 * 2 * 4 and (codes["shared"].str.split("; ").str[0] == codes["query_is"]).mean() > 0.9
    assert (shown.loc[shown["by"] == "embedding", "shared"] == "").all()
