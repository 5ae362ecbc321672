"""Lists of methods from parameters, and the notebooks' defaults."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mtlib.learn.methods import check_methods, settings, train_methods
from mtlib.learn.sparse_coder import SparseCoder, SparseCoderConfig

GOOD = {"name": "mine", "preset": "sae"}
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([GOOD | {"n_latent": 5}], r"methods\[0\]\.n_latent: unknown; did you mean 'n_latents'"),
        ([GOOD | {"preset": "transcodr"}], r"methods\[0\]\.transcodr: unknown; did you mean 'transcoder'"),
        ([GOOD, GOOD], "names must differ"),
        ([{"preset": "sae"}], r"methods\[0\] has no 'name'"),
        ([GOOD | {"name": "../up"}], "only letters"),
    ],
)
def test_bad_methods_are_refused_with_the_nearest_name(methods, message):
    with pytest.raises(ValueError, match=message):
        check_methods(methods, [0])


def test_seeds_must_exist_and_differ():
    with pytest.raises(ValueError, match="seeds"):
        check_methods([GOOD], [0, 0])


def test_settings_name_the_method_whose_value_is_wrong():
    with pytest.raises(ValueError, match=r"method 'mine': SparseCoderConfig\.ks"):
        settings(GOOD | {"k": 5000}, 8, 4, {}, {"n_latents": 64})


def test_own_settings_stand_above_common_ones_and_zero_means_published():
    config, train = settings(GOOD | {"n_latents": 32, "lr": 0.1}, 8, 4, {"lr": 0.0, "steps": 7}, {"n_latents": 64})
    assert (config.n_latents, train.lr, train.steps, train.batch) == (32, 0.1, 7, 32)


def test_methods_that_need_y_become_reasoned_rows(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    rows = {"train": np.arange(60), "val": np.arange(60, 80)}
    data = SimpleNamespace(x=x, y=None, rows=rows.get)
    methods = [GOOD, {"name": "other", "preset": "transcoder"}]
    coders, history = train_methods(data, methods, [3, 4], tmp_path / "coders", {"steps": 4}, {"n_latents": 16})
    assert coders["status"].tolist() == ["ok", "ok", "skipped", "skipped"]
    assert coders["reason"].iloc[2].startswith("its target is") and set(history["method"]) == {"mine"}
    folder = tmp_path / coders["folder"].iloc[1]
    assert folder.name == "mine-s4" and SparseCoder.from_pretrained(folder).n_latents == 16


def test_notebook_default_methods_are_valid_at_the_demo_size():
    source = (NOTEBOOKS / "03_train.py").read_text()
    cell = source.split('tags=["parameters"]')[1].split("# %%")[0]
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(cell).body
        if isinstance(node, ast.Assign)
    }
    check_methods(values["methods"], values["seeds"])
    common = {k: values[k] for k in ("n_latents", "centre", "scale", "target_centre", "target_scale")}
    for method in values["methods"]:
        config, _ = settings(method, 512, 256, {k: values[k] for k in ("steps", "lr", "batch")}, common)
        assert config.n_latents == values["n_latents"]


@pytest.mark.parametrize(("n_latents", "l0"), [(64, 8), (64, 5), (512, 32), (512, 8), (2048, 496)])
def test_l0_is_shared_out_over_blocks_without_losing_any(n_latents, l0):
    config = SparseCoderConfig.preset("matryoshka_transcoder", 16, 16, n_latents=n_latents, l0=l0)
    assert sum(config.ks) == l0 and min(config.ks) >= 1
