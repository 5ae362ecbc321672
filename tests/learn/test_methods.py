"""Lists of methods from parameters, and the notebooks' defaults."""

import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn.batches import neighbour_means
from mtlib.learn.config import MethodsConfig
from mtlib.learn.methods import FIT_COLUMNS, epochs, late_gains, log_events, provided, train_methods, training_curves
from mtlib.run.params import ParamsError, notebook_parameters
from mtlib.run.profiles import Places, load_params

GOOD, OTHER = {"name": "mine", "preset": "sae"}, {"name": "other", "preset": "sae"}
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def config(methods=(GOOD,), seeds=(0,), **common) -> MethodsConfig:
    return MethodsConfig(methods=list(methods), seeds=list(seeds), **common)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([GOOD | {"n_latent": 5}], r"^methods\[0\].n_latent is no setting of a method; did you mean n_latents\?$"),
        (
            [GOOD | {"preset": "transcodr"}],
            r"^methods\[0\].preset = 'transcodr': no such .* did you mean transcoder\?$",
        ),
        ([GOOD, GOOD], "names must differ"),
        ([{"preset": "sae"}], r"^methods\[0\].name is missing$"),
        ([GOOD | {"name": "../up"}], r"^methods\[0\].name = '../up': only letters"),
        ([], "^methods"),
        ([GOOD | {"target_neighbours": 5}], r"^methods\[0\].target_neighbours: only of a transcoder"),
    ],
)
def test_bad_methods_are_refused_with_the_nearest_name(methods, message):
    with pytest.raises(ValueError, match=message):
        config(methods)


def test_seeds_must_exist_and_differ():
    for seeds in ([0, 0], [], [-1]):
        with pytest.raises(ValueError, match="seeds"):
            config(seeds=seeds)


def test_own_settings_stand_above_common_ones_and_zero_means_published():
    common = config([GOOD | {"n_latents": 32, "lr": 0.1}], lr=0.0, steps=7, n_latents=64)
    coder, train = common.configs(common.methods[0], 8, 4)
    assert (coder.n_latents, train.lr, train.steps, train.batch) == (32, 0.1, 7, 32)


def test_methods_that_need_y_become_reasoned_rows(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    rows = {"train": np.arange(60), "val": np.arange(60, 80)}
    data = SimpleNamespace(x=x, y=None, tokens=1, rows=rows.get)
    methods = config([GOOD, {"name": "other", "preset": "transcoder"}], [3, 4], steps=4, n_latents=16)
    coders, history = train_methods(data, methods, tmp_path / "coders")
    assert coders["status"].tolist() == ["ok", "ok", "skipped", "skipped"]
    assert coders["reason"].iloc[2].startswith("its target is") and set(history["method"]) == {"mine"}
    folder = tmp_path / coders["folder"].iloc[1]
    assert folder.name == "mine-s4" and SparseCoder.from_pretrained(folder).n_latents == 16


def test_where_no_method_can_be_trained_the_tables_are_empty(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    rows = {"train": np.arange(60), "val": np.arange(60, 80)}
    data = SimpleNamespace(x=x, y=None, tokens=1, rows=rows.get)
    coders, history = train_methods(data, config([{"name": "other", "preset": "transcoder"}]), tmp_path / "coders")
    assert coders["status"].tolist() == ["skipped"] and epochs(history).empty
    assert training_curves(history)[0] is None and late_gains(history).empty


def _parameters() -> dict:
    values = notebook_parameters(NOTEBOOKS / "03_train.py")
    return {name: value for name, value in values.items() if name in MethodsConfig.model_fields}


def test_notebook_default_methods_are_valid_at_the_demo_size():
    values = MethodsConfig(**_parameters())
    for method in values.methods:
        coder, _ = values.configs(method, 512, 256)
        assert coder.n_latents == values.n_latents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(methods=[GOOD, OTHER | {"k": 5000}]), r"^methods\[1\].k = 5000 is larger than n_latents = 512$"),
        (dict(methods=[GOOD | {"l0": 600}]), r"^methods\[0\].l0 = 600 is larger than n_latents = 512$"),
        (dict(methods=[GOOD | {"bandwidth": 0.0}]), r"^methods\[0\].bandwidth = 0.0: should be greater than 0$"),
        (dict(methods=[GOOD | {"penalty_weight": float("nan")}]), r"^methods\[0\].penalty_weight = nan"),
        (dict(methods=[GOOD | {"lr": "fast"}]), r"^methods\[0\].lr = 'fast': expected a number"),
        (dict(methods=[GOOD | {"lr": -0.1}]), r"^methods\[0\].lr = -0.1: should be greater than 0$"),
        (dict(methods=[GOOD | {"k": True}]), r"^methods\[0\].k = True: expected a whole number"),
        (dict(methods=[GOOD | {"n_latents": "many"}]), r"^methods\[0\].n_latents = 'many': expected a whole number"),
        (dict(methods=[GOOD | {"selection": "best"}]), r"^methods\[0\].selection = 'best': should be 'none'"),
        (dict(scale="rsm"), r"^scale = 'rsm': should be 'none', 'rms', 'std' or 'rows' \(methods\[0\]\)$"),
        (dict(lr=-1.0), "^lr = -1.0: should be greater than or equal to 0"),
        (dict(precision="fp8"), r"^precision = 'fp8': should be 'float32', 'tf32' or 'bf16'$"),
        (dict(fits_at_once=0), "^fits_at_once = 0"),
        (dict(val_every=-1), "^val_every = -1"),
        (dict(seeds=[-1]), r"^seeds = \[-1\]"),
    ],
)
def test_parameters_are_refused_before_a_run_in_its_words(change, message):
    with pytest.raises(ValueError, match=message):
        MethodsConfig(**(_parameters() | change))


def test_checking_parameters_imports_no_torch():
    code = "import sys, mtlib.learn.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_profile_is_valid_also_with_smoke(repo):
    names = [p.stem for p in (repo / "params").glob("*.yaml") if p.stem != "smoke"]
    assert "demo" in names
    for name in names:
        load_params(name, True, {}, Places(root=repo))
    for name in ("demo", "study"):  # others may ask for a folder
        load_params(name, False, {}, Places(root=repo))


def test_the_command_line_is_named_where_its_value_is_wrong(repo):
    with pytest.raises(ParamsError, match=r"^-p: methods\[0\].k = 999 is larger than n_latents = 512$"):
        load_params("demo", False, {"methods": [GOOD | {"k": 999}]}, Places(root=repo))
    with pytest.raises(ParamsError, match=r"^notebooks/03_train.py: methods\[0\].l0 = 32 is larger"):
        load_params("demo", False, {"n_latents": 8}, Places(root=repo))


def test_l0_beyond_a_block_is_made_up_for_by_the_others():
    assert SparseCoderConfig.preset("matryoshka_sae", 8, 8, n_latents=128, l0=128).ks == (8, 8, 16, 32, 64)
    assert sum(SparseCoderConfig.preset("matryoshka_sae", 8, 8, n_latents=128).with_l0(120).ks) == 120


@pytest.mark.parametrize(("n_latents", "l0"), [(64, 8), (64, 5), (512, 32), (512, 8), (2048, 496)])
def test_l0_is_shared_out_over_blocks_without_losing_any(n_latents, l0):
    config = SparseCoderConfig.preset("matryoshka_transcoder", 16, 16, n_latents=n_latents, l0=l0)
    assert sum(config.ks) == l0 and min(config.ks) >= 1


def test_a_line_per_epoch_with_the_last_validation_in_it():
    rows = [("train", 2, 0.5, 4.0, None), ("train", 4, 1.0, 2.0, None), ("val", 4, 1.0, None, 0.3)]
    rows += [("val", 5, 1.25, None, 0.25), ("train", 8, 2.0, 1.0, None), ("val", 8, 2.0, None, 0.2)]
    history = pd.DataFrame(rows, columns=["split", "step", "epoch", "loss", "fvu"])
    history = history.assign(method="a", seed=0, target="x", reconstruction=history["loss"], l0=5.0, dead=0.0)
    table = epochs(history)
    assert table[["epoch", "step", "loss", "fvu"]].to_numpy().tolist() == [[1, 4, 3.0, 0.3], [2, 8, 1.0, 0.2]]
    assert table["evr"].tolist() == pytest.approx([0.7, 0.8])


def test_what_little_data_cannot_give_is_left_empty_and_later_stages_are_told(tmp_path):
    """Three train images, one validation image, one test image; and a hidden layer that is the same for all."""
    x, rows = (
        np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32),
        {"train": [0, 1, 2], "val": [3], "test": [4]},
    )
    data = SimpleNamespace(x=x, y=np.zeros((5, 4), np.float32), tokens=1, rows=lambda s: np.array(rows[s]))
    methods = config([GOOD | {"l0": 2}, OTHER | {"preset": "transcoder"}], steps=4, batch=2, n_latents=8)
    coders, history = train_methods(data, methods, tmp_path)
    assert coders["status"].tolist() == ["ok", "skipped"] and "the same for every train image" in coders["reason"][1]
    assert np.isnan(coders["fvu_val"].astype(float)[0]) and coders["l0_val"][0] <= 6
    fig, frame = training_curves(history)
    assert len(fig.axes) == 3 and frame["fvu"].isna().all()
    assert provided(coders, data) == []  # nothing can be measured on one test image
    rows["test"] = [3, 4]
    assert provided(coders, data) == ["coders", "trained", "autoencoders"]


def test_how_a_training_ended_is_what_its_last_tenth_still_gained():
    steps = {"a": [(50, 0.8), (90, 0.5), (100, 0.4)], "b": [(50, 0.4), (100, 0.5)], "once": [(100, 0.3)]}
    rows = [{"method": m, "seed": 0, "step": n, "fvu": f, "split": "val"} for m, part in steps.items() for n, f in part]
    rows += [{"method": "a", "seed": 0, "step": 100, "fvu": 9.0, "split": "train"}]
    assert late_gains(pd.DataFrame(rows)).round(6).to_dict() == {("a", 0): 0.2, ("b", 0): -0.25}


def test_a_target_of_neighbours_is_learned_from_the_train_rows_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)).astype(np.float32), rng.normal(size=(80, 4)).astype(np.float32)
    rows = {"train": np.arange(60), "val": np.arange(60, 80), "test": np.arange(0)}
    manifest = pd.DataFrame({"label": rng.integers(0, 2, 80)})
    data = SimpleNamespace(x=x, y=y, tokens=1, rows=rows.get, manifest=manifest, facts={"labels": "plausibility"})
    given = []
    monkeypatch.setattr("mtlib.learn.methods.run_all", lambda jobs, *_: given.extend(jobs))
    two = [{"name": name, "preset": name} for name in ("neighbour_transcoder", "matryoshka_transcoder")]
    with pytest.raises(FileNotFoundError):  # nothing was trained
        train_methods(data, config(two, n_latents=64), tmp_path)
    ours, theirs = (job["t"] for job in given)
    assert theirs is y and np.array_equal(ours[60:], y[60:])
    assert np.array_equal(ours, neighbour_means(x, y, rows["train"], manifest["label"].to_numpy(), 100))
    assert not np.array_equal(ours[:60], y[:60])


def test_event_files_hold_the_history(tmp_path):
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [("train", 25, 2.0, np.nan), ("val", 50, 1.0, 0.25)]
    history = pd.DataFrame(lines, columns=["split", "step", "loss", "fvu"]).reindex(columns=FIT_COLUMNS)
    log_events(history.assign(method="a", seed=3), tmp_path)
    found = EventAccumulator(str(tmp_path / "a-s3")).Reload()
    assert sorted(found.Tags()["scalars"]) == ["train/loss", "val/fvu", "val/loss"]
    assert [(e.step, e.value) for e in found.Scalars("val/fvu")] == [(50, 0.25)]


def test_event_files_without_the_package_are_refused_before_training():
    with pytest.raises(ValueError, match="tensorboard") if not find_spec("tensorboard") else nullcontext():
        config(tensorboard="logs")
