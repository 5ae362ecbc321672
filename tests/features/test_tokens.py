"""A vision model, its tokens, coders of them, and the notebook `tokens`: one small run from end to end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtlib.embed import store
from mtlib.embed.images import load_image
from mtlib.embed.vision import VisionConfig, vision_tokens
from mtlib.features.token_maps import spliced, token_figure, token_map, token_picture
from mtlib.learn.config import MethodsConfig, VisionTraining
from mtlib.learn.methods import train_methods
from mtlib.learn.vision import fit_vision, load_vision, read_pixels, write_tokens
from mtlib.measure.codes import first_seeds, open_subjects
from mtlib.run.artifacts import atomic, sha256, verify
from mtlib.run.stage import Stage
from tests.synthetic import write_embed_stage

METHODS = [{"name": "topk", "preset": "topk", "k": 4}, {"name": "transcoder", "preset": "transcoder", "l0": 4}]
N = 40
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "tokens.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "tokens"
    write_embed_stage(run_dir, n=N)
    stage = Stage("vision_model", str(run_dir))
    data = store.open_data(stage)
    hashes = [sha256(data.images(row)) for row in range(N)]  # the synthetic manifest has made-up ones
    data = replace(data, manifest=data.manifest.assign(sha256=hashes))
    labels, config = data.labels(), VisionConfig(n_classes=2, blocks=2, heads=4, layer=0, side=95)
    train, val = (rows[labels[rows] >= 0] for rows in (data.rows("train"), data.rows("val")))
    training = VisionTraining(vision_epochs=1, vision_batch=8)
    pixels = read_pixels(data, stage.out / "shards" / "pixels.npy", config)
    folders = stage.out / "vision", stage.out / "checkpoint"
    model, history = fit_vision(config, pixels, labels, train, val, training, *folders)
    logits, facts = write_tokens(model, pixels, stage.out / "x.npy")
    assert logits.shape == (N, 2)
    assert len(history) == 1
    stage.finish(x=facts)
    stage = Stage("03_train", str(run_dir))
    config = MethodsConfig(methods=METHODS, seeds=[0], steps=20, batch=16, n_latents=32)
    coders, _ = train_methods(store.open_data(stage), config, stage.out / "coders")
    with atomic(stage.out / "coders.csv") as tmp:
        coders.to_csv(tmp, index=False)
    stage.finish()
    return run_dir


def test_scratch_is_gone_and_the_model_stays(run):
    classify = next(run.glob("vision_model-*"))
    assert sorted(p.name for p in classify.iterdir()) == ["meta.json", "report.json", "vision", "x.npy"]
    assert sorted(p.name for p in (classify / "vision").iterdir()) == [
        "config.json",
        "history.parquet",
        "meta.json",
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


def test_map_and_picture_of_a_token_of_the_run(run):
    data, (subject, *others) = store.open_run(run), first_seeds(open_subjects(next(run.glob("03_train-*")))[0])
    assert (subject.method, others) == ("topk", []), "there is no y, so no transcoder"
    model = load_vision(next(run.glob("vision_model-*")) / "vision")
    image = int(data.rows("test")[0] // data.tokens)
    picture = load_image(data.images(image * 4))[0]
    assert np.allclose(vision_tokens(model, [picture])[0], data.x[image * 4 : image * 4 + 4], atol=1e-4)
    found, shown = token_map(subject.coder, data, image), token_picture(data, image, model)
    assert (found.activations.shape, shown.size) == ((4, 2, 2), (95, 95))
    fig = token_figure(found, shown, model)
    assert len([ax for ax in fig.axes if ax.get_title()]) == 5
    assert (fig.axes[0].patches[0].get_width(), fig.axes[0].patches[0].get_x() % 32) == (32, 15)
    hidden = replace(data, facts=data.facts | {"pictures": False})
    assert token_picture(hidden, image, model).getextrema() == ((255, 255),) * 3
    seen = spliced(model, subject.coder, hidden, 5).iloc[0]
    assert seen["n"] == 5
    assert 0 <= seen["agreement"] <= 1
    unlabelled = data.manifest.assign(label=pd.array([pd.NA] * len(data.manifest), dtype="Int64"))
    assert spliced(model, subject.coder, replace(data, manifest=unlabelled), 5).empty


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
    assert set(meta["inputs"]) == {"01_embed", "vision_model", "03_train"}
    assert {"tables/tokens_curves.csv", "figures/tokens_features.png"} <= set(meta["files"])
    seen = pd.read_csv(tmp_path / "tokens" / "tables" / "tokens_spliced.csv").iloc[0]
    assert (seen["method"], seen["n"]) == ("topk", 4)


def test_images_with_one_row_each_have_no_tokens_to_show(tmp_path):
    data = store.load_data(write_embed_stage(tmp_path / "run", n=20, images=False))
    with pytest.raises(ValueError, match="no tokens on a grid"):
        token_map(None, data, 0)
