"""Coders and classifiers that were trained elsewhere: they go through the notebooks as they are, without training."""

import json
import os

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed import store
from mtlib.learn.classifier import Classifier, given_classifier
from mtlib.learn.config import Method, MethodsConfig
from mtlib.learn.methods import open_given, train_methods
from mtlib.run import artifacts, dependencies
from mtlib.run.notebook import prepare
from mtlib.run.profiles import Places, load_params
from mtlib.run.stage import Stage
from tests.coders import checkpoints
from tests.synthetic import write_embed_stage

D, O, S, N = 32, 12, 64, 300  # noqa: E741


def write_all(folder) -> dict[str, checkpoints.Written]:
    """A file of each system, by the name of its method."""
    systems = {"msae": checkpoints.msae(folder, D, S, "TopKReLU_4_RW"), "clip": checkpoints.sae_for_clip(folder, D, S)}
    systems["transcoder"] = checkpoints.matryoshka_transcoders(folder, D, O, (16, 64), (2, 4))
    (folder / "mono").mkdir()
    systems["mono"] = checkpoints.monoloss(folder / "mono", D, S, "batch_topk")
    return systems | {"alexnet": checkpoints.alexnet(folder, D, S)}


def run_stage(repo, run_dir, stage: str, **values) -> dict:
    """The cells of a notebook that the run has what it needs for, in this process. Returns: the artifact's record."""
    metas = [artifacts.read_meta(run_dir / name) for name in artifacts.current(run_dir).values()]
    provided = {name for meta in metas for name in meta["facts"].get("provides", [])}
    notebook, _ = prepare(repo / "notebooks" / f"{stage}.py", provided, values)
    scope = {"__name__": "notebook"}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        exec(cell.source, scope)
        if "parameters" in cell.metadata.get("tags", []):
            scope |= values | {"run_dir": str(run_dir), "stage_dir": ""}
    return artifacts.verify(run_dir / artifacts.current(run_dir)[stage])


@pytest.fixture(scope="module")
def run(tmp_path_factory, repo):
    """Stages 02 to 05 of a run whose classifier and coders are all given."""
    matplotlib.use("agg")
    folder = tmp_path_factory.mktemp("given")
    files, head = write_all(folder), checkpoints.clip_classifier(folder, D, O)
    run_dir = folder / "run"
    write_embed_stage(run_dir, N, D)
    methods = [{"name": name, "checkpoint": str(written.path)} for name, written in files.items()]
    run_stage(repo, run_dir, "02_classify", classifier=str(head.path))
    run_stage(repo, run_dir, "03_train", methods=methods, seeds=[3, 4])
    run_stage(repo, run_dir, "04_evaluate")
    run_stage(repo, run_dir, "05_features", n_collages=1)
    return run_dir, files, head


def test_a_given_classifier_decides_and_gives_y(run):
    run_dir, _, head = run
    data = store.open_run(run_dir)
    y, probability = head.formula(np.asarray(data.x, np.float64))
    np.testing.assert_allclose(data.y, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-data.logits)), probability[:, 0], rtol=1e-3, atol=1e-5)


def test_given_coders_go_through_all_stages_as_they_are(run):
    run_dir, files, _ = run
    train = run_dir / artifacts.current(run_dir)["03_train"]
    data, coders = store.open_run(run_dir), pd.read_csv(train / "coders.csv", keep_default_na=False)
    assert coders["method"].tolist() == list(files)
    assert set(coders["status"]) == {"ok"} and set(coders["seed"]) == {0}
    x = np.asarray(data.x[data.rows("val")])
    for line in coders.itertuples():
        coder = SparseCoder.from_pretrained(train / line.folder)
        assert coder.recorded["checkpoint"]["file"] == files[line.method].path.name
        assert pd.read_parquet(train / line.folder / "history.parquet").empty
        with torch.no_grad():
            found = coder.encode(torch.from_numpy(x)).numpy()
        assert float(line.l0_val) == pytest.approx((found != 0).sum(1).mean(), rel=1e-4)
        z, y_hat = files[line.method].formula(x.astype(np.float64))
        if line.method == "mono":  # a frozen threshold, of these very rows
            np.testing.assert_allclose((found != 0).sum(1).mean(), (z != 0).sum(1).mean(), rtol=0.01)
            continue
        np.testing.assert_allclose(found, z, rtol=1e-3, atol=1e-3)
        target = np.asarray(data.y if line.target == "y" else data.x)[data.rows("val")].astype(np.float64)
        fvu = ((target - y_hat) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
        assert float(line.fvu_val) == pytest.approx(fvu, rel=1e-3)
    features = run_dir / artifacts.current(run_dir)["05_features"] / "features"
    assert sorted(p.name for p in features.iterdir()) == sorted(files)


def test_one_checkpoint_takes_the_place_of_the_methods(repo, tmp_path):
    written = checkpoints.sae_for_clip(tmp_path, D, S)
    values = load_params("demo", True, {"checkpoint": str(written.path)}, Places(repo))["03_train"]
    config = MethodsConfig(**{k: v for k, v in values.items() if k in MethodsConfig.model_fields})
    assert [(m.name, m.checkpoint) for m in config.methods] == [("theirs", str(written.path))]
    with pytest.raises(FileNotFoundError, match=r"checkpoint = nowhere\.pt: no such file or folder"):
        load_params("demo", True, {"checkpoint": "nowhere.pt"}, Places(repo))
    with pytest.raises(FileNotFoundError, match=r"checkpoint = nowhere\.pt: no such file or folder"):
        load_params("demo", True, {"methods": [{"name": "a", "checkpoint": "nowhere.pt"}]}, Places(repo))
    load_params("demo", True, {"checkpoint": "hf-hub:someone/coder"}, Places(repo))


@pytest.mark.parametrize("more", [{"l0": 4}, {"preset": "sae"}, {"n_latents": 8}, {"lr": 0.1}, {"scale": "rms"}])
def test_a_checkpoint_takes_no_other_settings(more):
    with pytest.raises(ValueError, match=rf"^methods\[0\].{next(iter(more))} = .*a checkpoint has its settings"):
        MethodsConfig(methods=[{"name": "a", "checkpoint": "a.pt"} | more], seeds=[0])


def test_a_coder_of_another_width_is_refused_with_the_encoder_that_fits(tmp_path):
    write_embed_stage(tmp_path / "run", 80, D, images=False)
    data = store.open_data(Stage("03_train", str(tmp_path / "run")))
    wide = checkpoints.sae_for_clip(tmp_path, 2 * D, 2 * S).path
    said = (
        r"reads x of width 64, here it is 32; it was trained on encoder=ViT-B-32 pretrained=laion2b_s34b_b79k layer=11"
    )
    with pytest.raises(ValueError, match=said):
        open_given(data, Method(name="a", checkpoint=str(wide)))
    transcoder = checkpoints.matryoshka_transcoders(tmp_path, D, O, (64,), (4,)).path
    config = MethodsConfig(methods=[{"name": "a", "checkpoint": str(transcoder)}], seeds=[0])
    coders, history = train_methods(data, config, tmp_path / "coders")
    assert coders["status"].tolist() == ["skipped"] and history.empty, "there is no y"


def test_another_file_is_another_input(tmp_path):
    written = checkpoints.monoloss(tmp_path, D, S, "jumprelu")
    for params in ({"checkpoint": str(written.path)}, {"methods": [{"name": "a", "checkpoint": str(written.path)}]}):
        before = dependencies.external_inputs(params, tmp_path)
        assert list(before) == [str(written.path)]
        (tmp_path / "training_config.json").write_text(json.dumps({"normalize": False}))
        between = dependencies.external_inputs(params, tmp_path)
        checkpoints.monoloss(tmp_path, D, S, "jumprelu", seed=1)
        after = dependencies.external_inputs(params, tmp_path)
        assert len({str(found) for found in (before, between, after)}) == 3
        os.remove(tmp_path / "training_config.json")
        checkpoints.monoloss(tmp_path, D, S, "jumprelu")
    coder = tmp_path / "ours"  # a folder by any name
    coder.mkdir()
    assert list(dependencies.external_inputs({"methods": [{"checkpoint": "ours"}]}, tmp_path)) == ["ours"]


def test_classifiers_of_other_layouts_and_widths_are_refused(tmp_path):
    path, names = checkpoints.clip_classifier(tmp_path, D, O).path, ["plausible", "implausible"]
    with pytest.raises(
        ValueError, match=r"reads x of width 32 and gives 1 logits; this run has x of width 16 and gives 3"
    ):
        given_classifier(str(path), 16, ["a", "b", "c"])
    state = torch.load(path)
    torch.save(state | {"fc3.bias": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(
        ValueError, match=r"more\.pt: expected fc1, fc2 and base.*fc3\.bias is missing or not understood"
    ):
        given_classifier(str(tmp_path / "more.pt"), D, names)
    head = Classifier(D, O, seed=4)
    head.save(tmp_path / "classifier")
    assert torch.equal(given_classifier(str(tmp_path / "classifier"), D, names).w_logit, head.w_logit)
