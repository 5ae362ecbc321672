"""Where an image has several rows (tokens), what is said of images is counted over images."""

import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.ask.interview import Job
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.store import Data, with_tokens
from mtlib.judge.scoring import held_out
from mtlib.judge.settings import JudgeConfig
from mtlib.measure.codes import Subject, sparse_codes
from mtlib.measure.monosemanticity import Purity
from mtlib.measure.relevance import LEVEL, error_ratios
from mtlib.measure.scan import activity, scan
from mtlib.report.relevance_tables import enriched_null
from mtlib.truth import causes, tables
from tests import synthetic

T, N, D = 3, 900, 32


@pytest.fixture(scope="module")
def data() -> Data:
    """Images of three tokens: one holds the planted embedding, the others noise; all in sixteenths, see `coder`."""
    x, manifest, table = synthetic.table(N, D)
    rng = np.random.default_rng(5)
    tokens = rng.normal(size=(N, T, D)).astype(np.float32) * 0.5
    tokens[np.arange(N), rng.integers(0, T, N)] = x
    phrases = pd.DataFrame(columns=["phrase", "kind", "family", "cause"])
    facts = {"labels": "plausibility", "tokens_per_image": 1}
    tokens = np.round(tokens * 16) / 16
    whole = Data(x, manifest, np.zeros((0, D), np.float32), phrases, facts, truth=table)
    return with_tokens(whole, tokens.reshape(-1, D), {"tokens_per_image": T, "layer": "x"})


@pytest.fixture(scope="module")
def coder() -> SparseCoder:
    """One code in eleven fires. Weights in sixteenths too: products are exact, so who fires is the same everywhere."""
    coder = SparseCoder(SparseCoderConfig.preset("relu", D, D, n_latents=96, init_norm=1.0)).eval()
    with torch.no_grad():
        coder.enc.copy_((coder.enc * 16).round() / 16)
        coder.enc_bias.fill_(-1.0)
    return coder


def test_an_image_has_the_largest_code_of_its_tokens(data, coder):
    rows = data.rows("test")
    z = sparse_codes(coder, data.x, rows).toarray().reshape(-1, T, 96).max(axis=1)
    for batch in (7, 2048):
        pooled = sparse_codes(coder, data.x, rows, batch=batch, tokens=T)
        assert pooled.shape == (len(rows) // T, 96)
        np.testing.assert_allclose(pooled.toarray(), z, atol=1e-6)


def test_assessed_latents_are_counted_over_images(data, coder):
    rows = data.rows("test")[: 30 * T]
    found = scan(coder, data.x, data.x, rows, tokens=T, batch=10).summary
    fires = (sparse_codes(coder, data.x, rows, tokens=T) != 0).sum(axis=0)
    by_row = (sparse_codes(coder, data.x, rows) != 0).sum(axis=0)
    assert found["n_assessed"] == (fires >= 10).sum() < (by_row >= 10).sum()


def test_purity_is_of_images(data, coder):
    classes = pd.factorize(data.manifest["class_name"])[0]
    latents = scan(coder, data.x, data.x, data.rows("test"), tokens=T, classes=classes).latents
    codes = sparse_codes(coder, data.x, data.rows("test"), tokens=T).toarray()
    of_images = Purity(classes, data.rows("test")[::T], 96)
    of_images.update(data.rows("test")[::T], torch.from_numpy(codes))
    np.testing.assert_allclose(latents["purity"], of_images.result()["purity"])


def test_held_out_images_without_a_feature_are_those_where_no_token_fires(data, coder):
    jobs = [Job("m", feature, np.arange(0)) for feature in range(96)]
    said = {job.name: "something" for job in jobs}
    trials = held_out(jobs, said, lambda method: coder, data, JudgeConfig(score_features=96, score_images=10))
    fires = sparse_codes(coder, data.x, data.rows("test"), tokens=T).toarray() > 0
    place = {row: i for i, row in enumerate(data.rows("test")[::T])}
    assert trials
    for trial in trials:
        shown = [fires[place[row], trial.job.feature] for row in trial.rows]
        assert shown == list(trial.fires)


def test_causes_are_those_of_images(data, coder):
    known, subject = tables.Known.of(data), Subject("topk", 0, "topk", "x", coder)
    found = tables.causes_table(known, [subject], [known.codes(subject)], {}).set_index("cause")
    images = data.per_image()
    rows = {s: r[images.labels()[r] >= 0] for s in ("train", "val", "test") if len(r := images.rows(s))}
    tasks = causes.tasks(images.truth, rows)
    codes = {s: sparse_codes(coder, data.x, data.rows(s), tokens=T) for s in ("val", "test")}
    expected = causes.causes_found(tasks, codes["val"], codes["test"]).set_index("cause")
    pd.testing.assert_series_equal(found["auroc"], expected["auroc"])
    hand = images.truth.iloc[rows["test"]]
    assert found.loc["hand_error", "n_cause"] == ((hand["family"] == "hand") & (hand["label"] == 1)).sum()


def test_the_null_counts_what_the_scores_count(data, coder):
    images = data.rows("test")[::T]
    seen = activity(coder, data.x, data.rows("test"), tokens=T, labels=data.labels()).frame()
    scores = error_ratios(seen["n_error"], seen["n_labelled"], int((data.labels(images) == 1).sum()), len(images))
    found = enriched_null(coder, data)
    assert found["observed"] == (scores["assessed"] & (scores["q_bh"] <= LEVEL)).sum() > 0
