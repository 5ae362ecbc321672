"""A vision model, its tokens, coders of them, and what the notebook `tokens` reads: one small run from end to end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtlib.embed import store
from mtlib.embed.images import load_image
from mtlib.embed.vision import VisionConfig, vision_tokens
from mtlib.features.token_map import token_figure, token_map
from mtlib.learn.methods import train_methods
from mtlib.learn.train_vision import VisionTraining, train_and_read
from mtlib.report.tokens import TokenRun
from mtlib.run.artifacts import ArtifactError, atomic, sha256, verify
from mtlib.run.stage import Stage
from tests.synthetic import write_embed_stage

METHODS = [{"name": "topk", "preset": "topk", "k": 4}, {"name": "transcoder", "preset": "transcoder", "l0": 4}]
N = 40
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "tokens.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "tokens"
    write_embed_stage(run_dir, n=N)
    stage = Stage("02_classify", str(run_dir))
    data = store.open_data(stage)
    hashes = [sha256(data.images(row)) for row in range(N)]  # the synthetic manifest has made-up ones
    data = replace(data, manifest=data.manifest.assign(sha256=hashes))
    labels, config = data.labels(), VisionConfig(2, blocks=2, heads=4, layer=0, side=95)
    train, val = (rows[labels[rows] >= 0] for rows in (data.rows("train"), data.rows("val")))
    training = VisionTraining(epochs=1, batch=8)
    logits, history, facts = train_and_read(data, labels, train, val, config, training, stage.out)
    assert logits.shape == (N,)
    assert len(history) == 1
    stage.finish(status="vision", vision="alexnet", x=facts)
    stage = Stage("03_train", str(run_dir))
    coders, _ = train_methods(
        store.open_data(stage), METHODS, [0], stage.out / "coders", {"steps": 20, "batch": 16}, {"n_latents": 32}
    )
    with atomic(stage.out / "coders.csv") as tmp:
        coders.to_csv(tmp, index=False)
    stage.finish()
    return run_dir


def test_scratch_is_gone_and_the_model_stays(run):
    classify = next(run.glob("02_classify-*"))
    assert sorted(p.name for p in classify.iterdir()) == ["meta.json", "vision", "x.npy"]
    assert sorted(p.name for p in (classify / "vision").iterdir()) == [
        "config.json",
        "history.parquet",
        "weights.safetensors",
    ]


def test_later_stages_read_the_tokens_as_x(run):
    data = store.open_run(run)
    assert data.x.shape == (N * 4, 256)
    assert (data.tokens, data.facts["d_in"], data.facts["labels"]) == (4, 256, "plausibility")
    assert data.y is None
    assert data.embedding.shape == (N * 4, 32), "each token's image in the space of the vocabulary"
    assert len(data.manifest) == len(data.truth) == N * 4
    assert (data.manifest["path"].to_numpy().reshape(N, 4) == data.truth["path"].to_numpy().reshape(N, 4)).all()


def test_run_is_read_whole(run):
    read = TokenRun.open(run)
    assert (read.method, list(read.histories)) == ("topk", ["topk"]), "there is no y, so no transcoder"
    image = int(read.images("test")[0])
    picture = load_image(read.data.images(image * 4))[0]
    assert np.allclose(vision_tokens(read.eyes, [picture])[0], read.data.x[image * 4 : image * 4 + 4], atol=1e-4)
    found = token_map(read.coder, read.data, image)
    assert found.activations.shape == (4, 2, 2)
    assert read.corners == (15, 32)
    assert len([ax for ax in token_figure(found, read.picture(image), read.corners).axes if ax.get_title()]) == 5
    hidden = replace(read, data=replace(read.data, facts=read.data.facts | {"pictures": False}))
    assert read.shown(image) == read.picture(image)
    assert hidden.shown(image).getextrema() == ((255, 255),) * 3 and hidden.picture(image) == read.picture(image)
    spliced = read.spliced(5)
    assert spliced["n"] == 5
    assert 0 <= spliced["agreement"] <= 1


def test_notebook_tokens_runs_as_a_stage(run, tmp_path):
    """The cells of the notebook, in this process: its artifact is complete and names what it read."""
    import jupytext
    import matplotlib

    matplotlib.use("agg")
    cells = [c for c in jupytext.read(NOTEBOOK).cells if c.cell_type == "code"]
    values = {"run_dir": str(run), "stage_dir": str(tmp_path / "tokens"), "n_spliced": 4, "n_features": 3}
    scope: dict = {}
    for cell in cells:
        exec(cell.source, scope)
        if "parameters" in cell.metadata.get("tags", []):
            scope |= values
    meta = verify(tmp_path / "tokens")
    assert set(meta["inputs"]) == {"01_embed", "02_classify", "03_train"}
    assert {"tables/tokens_curves.csv", "figures/tokens_features.png", "README.md"} <= set(meta["files"])
    text = (tmp_path / "tokens" / "README.md").read_text()
    assert "| topk |" in text and "on 4 test images" in text


def test_what_cannot_be_read_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="method = 'transcoder': this run has"):
        TokenRun.open(run, "transcoder")
    write_embed_stage(tmp_path / "run", n=20, images=False)
    with pytest.raises(ArtifactError, match="no coders yet"):
        TokenRun.open(tmp_path / "run")
    Stage("03_train", str(tmp_path / "run")).finish()
    with pytest.raises(ArtifactError, match="one row per image"):
        TokenRun.open(tmp_path / "run")
