"""The labeler on a finished run: the published format, verified artifacts, clear errors."""

import json
import shutil
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.images import ImageRefused
from mtlib.embed.store import open_run
from mtlib.features.familiar import Familiar
from mtlib.judge import thresholds
from mtlib.judge.labeler import Labeler
from mtlib.run.artifacts import ArtifactError, current, set_current
from tests.coders import checkpoints
from tests.judge.small_run import write_small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def labeler(run):
    """Of all features, as published."""
    return Labeler(run, as_published=True)


def folder(run, stage):
    return run / current(run)[stage]


def test_explanations_have_the_published_fields_and_hold_what_the_coder_says(run, labeler):
    x = np.array(open_run(run).x[7])
    found = labeler.get_explanations(x)
    z = (
        SparseCoder.from_pretrained(folder(run, "03_train") / "coders/tc-s0")
        .encode(torch.from_numpy(x)[None])[0]
        .detach()
    )
    assert {e["feature_num"] for e in found} == set(torch.nonzero(z > 0.5)[:, 0].tolist())
    published = {"feature_num", "activation", "explanation", "wrong_ratio", "wrong_count", "total_count"}
    assert found and all(set(e) == published | {"verdict", "logit_push"} for e in found)
    activations = [e["activation"] for e in found]
    assert activations == sorted(activations, reverse=True)
    assert activations[0] == pytest.approx(float(z.max()))
    json.dumps(found, allow_nan=False)


def test_counts_are_those_of_the_features_table(run, labeler):
    table = pd.read_parquet(folder(run, "05_features") / "features/tc/features.parquet").set_index("feature")
    for e in labeler.get_explanations(np.array(open_run(run).x[3])):
        line = table.loc[e["feature_num"]]
        assert (e["wrong_count"], e["total_count"]) == (line["n_error"], line["n_active_test"])
        assert e["wrong_ratio"] == pytest.approx(e["wrong_count"] / e["total_count"])


def test_threshold_keeps_more_or_fewer(run):
    x = np.array(open_run(run).x[0])
    counts = [len(Labeler(run, "tc", threshold=t, as_published=True).get_explanations(x)) for t in (0.0, 0.5, 1e6)]
    assert counts[0] >= counts[1] > counts[2] == 0
    with pytest.raises(ValueError, match="threshold = -1"):
        Labeler(run, threshold=-1)


def test_an_image_is_labelled_only_by_features_that_the_val_labels_bear_out(run, labeler):
    data, own = open_run(run), Labeler(run)
    chosen = pd.read_parquet(folder(run, "06_interpret") / "explanations/tc" / thresholds.FILE).set_index("feature")
    labelled = 0
    for row in data.rows("test"):
        x = np.array(data.x[row])
        found = {e["feature_num"]: e for e in own.get_explanations(x)}
        labelled += len(found)
        for e in labeler.get_explanations(x):
            line = chosen.loc[e["feature_num"]]
            may = line["enriched"] and e["activation"] > line["threshold"]  # NaN: never
            may = may and e["verdict"] == "error" and e["logit_push"] > 0
            assert (e["feature_num"] in found) == may
            if may:
                marks = {"precision": line["precision"], "check": "verified", "distance": None}
                assert found[e["feature_num"]] == e | marks | {"logit_push": pytest.approx(e["logit_push"], rel=1e-4)}
    assert 0 < labelled < len(data.rows("test"))


def test_scores_against_the_truth_are_of_the_labels_that_the_labeler_gives(run):
    data, own = open_run(run), Labeler(run)
    written = folder(run, "06_interpret") / "explanations/tc"
    said = pd.read_parquet(written / "verdicts.parquet").query("judge == 'keyless'")
    ways = {"chosen": (said, thresholds.read(written)), "all": (said, None)}
    found = thresholds.label_scores(own.coder, own.classifier, data, ways).set_index("labels")
    wrong = [np.array(data.x[row]) for row in data.rows("test") if data.truth["cause"].iloc[row]]
    assert found.loc["chosen", "n_labels"] == sum(len(own.get_explanations(x)) for x in wrong) > 0
    every = Labeler(run, as_published=True)
    errors = sum(e["verdict"] == "error" for x in wrong for e in every.get_explanations(x))
    assert found.loc["all", "n_labels"] == errors > found.loc["chosen", "n_labels"]


def test_without_labels_all_are_returned_and_marked_unverified(run, labeler, monkeypatch):
    x, marks = np.array(open_run(run).x[7]), {"precision": None, "check": "unverified"}
    monkeypatch.setattr(thresholds, "read", lambda folder: pd.DataFrame(columns=thresholds.COLUMNS))
    assert Labeler(run).get_explanations(x) == [e | marks | {"distance": None} for e in labeler.get_explanations(x)]


def test_label_tells_probability_and_reasons(run, labeler):
    data = open_run(run)
    told = labeler.label(np.array(data.x[5]))
    assert told["probability"] == pytest.approx(1 / (1 + np.exp(-float(data.logits[5]))), rel=1e-4)
    assert told["predicted"] == ("implausible" if data.logits[5] > 0 else "plausible")
    found = [e for e in told["explanations"] if e["verdict"] == "error" and e["logit_push"] > 0]
    found = sorted(found, key=lambda e: -e["logit_push"]) if data.logits[5] > 0 else []
    assert told["reasons"] == list(dict.fromkeys(e["explanation"] for e in found))


@pytest.mark.parametrize("target", ["x", "y"])
def test_logit_pushes_are_what_removing_the_feature_takes_away(run, target):
    labeler = Labeler(run, threshold=0, as_published=True)
    if target == "x":
        config = SparseCoderConfig.preset("sae", 32, 32, n_latents=labeler.coder.n_latents)
        labeler.coder = SparseCoder(config, seed=3)
    x = np.array(open_run(run).x[11])
    z = labeler.coder.encode(torch.from_numpy(x)[None])
    output = labeler.classifier if labeler.coder.config.target == "x" else lambda y: labeler.classifier.output(y)
    with torch.no_grad():
        whole = output(labeler.coder.decode(z))
        for e in labeler.get_explanations(x):
            without = z.clone()
            without[0, e["feature_num"]] = 0
            expected = float(whole - output(labeler.coder.decode(without)))
            assert e["logit_push"] == pytest.approx(expected, abs=1e-4)


def test_image_file_pil_image_and_embedding_say_the_same(run, labeler, tmp_path):
    x = np.array(open_run(run).x[9])
    labeler.encoder = SimpleNamespace(encode_images=lambda images: np.stack([x + np.asarray(i).mean() for i in images]))
    picture = Image.new("RGB", (8, 8), (3, 3, 3))
    picture.save(tmp_path / "a.png")
    assert labeler.label(tmp_path / "a.png") == labeler.label(picture) == labeler.label(x + 3)
    turned, exif = Image.linear_gradient("L").convert("RGB"), Image.Exif()
    labeler.encoder = SimpleNamespace(
        encode_images=lambda images: np.stack([x + np.asarray(i)[:9].mean() for i in images])
    )
    for exif[0x0112] in range(1, 9):
        turned.save(tmp_path / "t.jpg", exif=exif)
        with Image.open(tmp_path / "t.jpg") as opened:
            assert labeler.label(opened) == labeler.label(tmp_path / "t.jpg") == labeler.label(opened.copy())
    for nothing in ("gone.png", "https://example.org/a.png"):
        with pytest.raises(ImageRefused, match="missing: no such file"):
            labeler.label(nothing)
    (tmp_path / "b.jpg").write_bytes(b"<html>no image</html>")
    with pytest.raises(ImageRefused, match="not an image"):
        labeler.label(tmp_path / "b.jpg")


def test_bad_embeddings_and_names_are_refused(run, labeler):
    with pytest.raises(ValueError, match=r"32 finite numbers, got shape \(31,\)"):
        labeler.get_explanations(np.zeros(31, np.float32))
    with pytest.raises(ValueError, match="finite"):
        labeler.get_explanations(np.full(32, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"method = 'nope': this run has \['sae', 'tc'\]"):
        Labeler(run, "nope")
    with pytest.raises(ValueError, match="'sae' has no coder: not today"):
        Labeler(run, "sae")
    with pytest.raises(ValueError, match=r"judge = 'lmm': 06 has verdicts of \['keyless', 'truth'\]"):
        Labeler(run, judge="lmm")


def test_damaged_or_missing_artifact_is_named(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    weights = folder(other, "03_train") / "coders/tc-s0/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"sha256 mismatch: .*weights"):
        Labeler(other)
    for stage in set(current(other)) - {"01_embed"}:
        set_current(other, stage, None)
    with pytest.raises(ArtifactError, match="no artifact of 03_train"):
        Labeler(other)


def test_script_in_a_phrase_stays_text(labeler):
    line = labeler._line(0, 1.0, None)
    assert line["explanation"] == "<script>alert(1)</script>"
    assert "<script>" not in pd.DataFrame([line]).to_html()


def test_published_probes_label_as_their_authors_do(tmp_path):
    t, info = checkpoints.draws(7), tmp_path / "relevant_features_info.jsonl"
    state = OrderedDict()
    for i in range(5):
        state |= {f"probes.{i}.weight": t(1, 16), f"probes.{i}.bias": t(1)}
    torch.save(state, tmp_path / "relevant_features_probe.pth")
    lines = [
        dict(feature_num=n, explanation=f"word {n}", wrong_ratio=0.5, wrong_count=n, total_count=2 * n)
        for n in (9, 4, 9, 1, 7)  # 9 comes twice
    ]
    info.write_text("".join(json.dumps(line) + "\n" for line in lines))
    labeler = Labeler.of_probes(tmp_path / "relevant_features_probe.pth", info)
    x = t(16, scale=2.0).numpy()
    a = [
        float(np.maximum(checkpoints.array(state[f"probes.{i}.weight"]) @ x + state[f"probes.{i}.bias"].item(), 0)[0])
        for i in range(5)
    ]
    order = [i for i in np.argsort([-value for value in a]) if a[i] > 0.5]
    found = labeler.get_explanations(x)
    assert 0 < len(order) < 5
    assert [{k: line[k] for k in lines[0]} for line in found] == [lines[i] for i in order]
    assert [line["activation"] for line in found] == pytest.approx([a[i] for i in order], rel=1e-5)
    assert labeler.label(x) == {
        "distance": None,
        "probability": None,
        "predicted": "",
        "reasons": [],
        "explanations": found,
    }
    labeler = Labeler.of_probes(
        tmp_path / "relevant_features_probe.pth", info, SimpleNamespace(d_in=16, encode_images=lambda images: x[None])
    )
    assert labeler.get_explanations(Image.new("RGB", (8, 8))) == found
    info.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="5 probes of width 16, 1 lines"):
        Labeler.of_probes(tmp_path / "relevant_features_probe.pth", info)
    info.write_text('{"feature_num": 3}\n')
    with pytest.raises(ValueError, match=r"relevant_features_info\.jsonl line 1: expected feature_num, explanation"):
        Labeler.of_probes(tmp_path / "relevant_features_probe.pth", info)
    torch.save(state | {"encoder.0.weight": t(2, 2)}, tmp_path / "coder.pth")
    with pytest.raises(ValueError, match=r"coder\.pth: the file holds 'encoder\.0\.weight', which is not understood"):
        Labeler.of_probes(tmp_path / "coder.pth", info)


def test_of_an_image_unlike_those_of_the_run_nothing_is_said(run, labeler):
    data, unsure = open_run(run), Labeler(run)
    near, far = np.array(data.x[data.rows("train")[0]]), np.full(data.x.shape[1], -1.0, np.float32)
    assert unsure.label(far)["distance"] is None and unsure.label(far)["predicted"]
    sure = Labeler(run)
    sure.familiar = Familiar.fit(*(np.asarray(data.x[data.rows(split)]) for split in ("train", "val")))
    assert sure.distance(far) > 1 > sure.distance(near) and sure.get_explanations(far) == []
    silent = {"probability": None, "predicted": "", "reasons": [], "explanations": []}
    assert sure.label(far) == silent | {"distance": sure.distance(far)}
    assert sure.label(near) == unsure.label(near) | {"distance": sure.distance(near)}
    sure.as_published, sure.chosen = True, None  # leaves nothing out
    assert sure.get_explanations(far) == labeler.get_explanations(far) != []
