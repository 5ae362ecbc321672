"""The training loop: statistics, seeds, exact resume after SIGKILL, L0 targets, thresholds that move."""

import contextlib
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn import loop, train
from mtlib.learn.batches import Rows, Sampler, logit_scale, moments, neighbour_means
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit, read_history, summary
from mtlib.measure.scan import scan
from mtlib.run.artifacts import ArtifactError

D, O, N = 16, 12, 700  # noqa: E741
TRAIN, VAL = np.arange(0, 500), np.arange(500, 700)
NORMAL = dict(centre="mean", scale="rms", target_centre="mean", target_scale="rms")


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, 6)) @ rng.normal(size=(6, D)) + 0.3 * rng.normal(size=(N, D)) + 2).astype(np.float32)
    return x, np.maximum(x @ rng.normal(size=(D, O)).astype(np.float32), 0)


def _config(name: str = "matryoshka_transcoder_shared", **changes) -> SparseCoderConfig:
    own = dict(unit_rows=False, scale="rms", centre="mean") if "jumprelu" in name else NORMAL
    return SparseCoderConfig.preset(name, D, O, **({"n_latents": 64, "l0": 6} | own | changes))


def _fit(folder, config=None, **changes):
    x, y = _data()
    config = config or _config()
    settings = TrainConfig(**(dict(steps=60, batch=64, lr=3e-3, val_every=20, log_every=10) | changes))
    return fit(config, x, y if config.target == "y" else x, TRAIN, VAL, settings, folder)


def _bytes(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_training_improves_and_writes_its_files(tmp_path):
    coder = _fit(tmp_path)
    files = ["config.json", "history.parquet", "meta.json", "weights.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    history, best = read_history(tmp_path), summary(tmp_path)
    val = history[history["split"] == "val"]
    assert val["fvu"].iloc[-1] < 0.6 * val["fvu"].iloc[0] < 1
    assert best["loss"] == val["loss"].min() and best["step"] in set(val["step"])
    x, y = _data()
    with torch.no_grad():
        z, y_hats = coder(torch.from_numpy(x[VAL]))
    fvu = np.square(y[VAL] - y_hats[-1].numpy()).sum() / np.square(y[VAL] - y[VAL].mean(0)).sum()
    assert best["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert best["l0"] == pytest.approx(float((z != 0).sum()) / len(VAL))


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _fit(tmp_path / name, seed=seed)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert _bytes(tmp_path / "a")["weights.safetensors"] != _bytes(tmp_path / "c")["weights.safetensors"]


def test_finished_fit_is_loaded_and_changed_settings_are_not(tmp_path):
    _fit(tmp_path)
    before = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    _fit(tmp_path)
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == before
    _fit(tmp_path, steps=61)
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns != before


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "history.parquet", "meta.json"])
def test_a_damaged_fit_is_said_and_trained_again_to_the_same_bytes(name, tmp_path, capsys):
    _fit(tmp_path)
    before = _bytes(tmp_path)
    raw = bytearray(before[name])
    raw[len(raw) // 2] ^= 1
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ArtifactError, match=name):
        summary(tmp_path)
    _fit(tmp_path)
    assert f"{name}; it is trained again" in capsys.readouterr().out and _bytes(tmp_path) == before


def _fit_slowly(folder: str, config: dict, settings: dict) -> None:
    torch.set_num_threads(1)
    x, y = _data()
    step = loop.save

    def slow_save(*args):
        step(*args)
        time.sleep(0.02)  # widens the places where a kill can land

    loop.save = slow_save
    fit(SparseCoderConfig(**config), x, y, TRAIN, VAL, TrainConfig(**settings), folder)


@pytest.mark.slow
def test_resume_after_sigkill_ends_with_identical_bytes(tmp_path):
    settings = dict(steps=90, batch=64, lr=3e-3, val_every=20, log_every=7, checkpoint_steps=4, revive_every=15)
    config = _config(dead_after=200)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtlib.learn.train", "tests.learn.test_train"])

    def start(name):
        child = context.Process(target=_fit_slowly, args=(str(tmp_path / name), config.model_dump(), settings))
        child.start()
        return child

    whole = start("whole")
    whole.join(120)
    assert whole.exitcode == 0
    rng, kills, state = random.Random(0), 0, tmp_path / "killed" / "checkpoint" / loop.NAME
    for _ in range(5):
        seen = state.stat().st_mtime_ns if state.exists() else 0
        child = start("killed")
        while child.is_alive() and (not state.exists() or state.stat().st_mtime_ns == seen):
            time.sleep(0.005)  # at least one new checkpoint, so that every life makes progress
        time.sleep(rng.random() * 0.15)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join(60)
    last = start("killed")
    last.join(120)
    assert last.exitcode == 0 and kills >= 2
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / loop.NAME).write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        _fit(tmp_path)
    parts = {"model": {"w": torch.arange(12.0).view(3, 4)}, "sums": {"any": torch.tensor(True)}}
    loop.save(tmp_path / "checkpoint", parts, {"key": "k", "step": 20, "history": [{"loss": 0.5}], "best_val": None})
    path, (_, whole) = tmp_path / "checkpoint" / loop.NAME, loop.load(tmp_path / "checkpoint")
    before = path.read_bytes()
    for i in range(0, 8 * len(before), 13):
        flipped = bytearray(before)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        with contextlib.suppress(ValueError):
            tensors, record = loop.load(tmp_path / "checkpoint")
            assert record == whole and torch.equal(tensors["model.w"], parts["model"]["w"]), "it changes nothing"


@pytest.mark.parametrize("name", ["transcoder", "matryoshka_sae", "batch_topk", "matryoshka_transcoder_shared"])
def test_selections_match_their_l0_on_validation_rows(name, tmp_path):
    _fit(tmp_path, _config(name, l0=None), l0_target=9)
    assert summary(tmp_path)["matched"] and summary(tmp_path)["l0"] == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize("name", ["relu", "monoloss_jumprelu", "alexnet"])
def test_penalties_are_steered_to_the_l0_target(name, tmp_path):
    _fit(tmp_path, _config(name, l0=None, penalty_weight=1e-3), l0_target=9, steps=240, lr=5e-3)
    result = summary(tmp_path)
    assert result["matched"] and result["l0"] == pytest.approx(9, rel=0.05)


def test_monoloss_rests_where_it_would_pull_the_l0_below_its_target(tmp_path, monkeypatch):
    settings = dict(steps=400, l0_target=24)
    config = _config(mono_weight=1.0, aux_weight=0.0)
    _fit(tmp_path / "held", config, **settings)
    monkeypatch.setattr(train, "MONO_RESTS", 0.0)
    _fit(tmp_path / "not", config, **settings)
    held, free = (read_history(tmp_path / name).query("split == 'val'").iloc[-1] for name in ("held", "not"))
    assert free["l0"] < 0.6 * 24, "else there is nothing to hold"
    assert held["l0"] > 0.9 * 24 and held["fvu"] < free["fvu"]


def test_threshold_is_calibrated_on_rows_from_all_of_the_split():
    rows = Rows(np.arange(1000, dtype=np.float32)[:, None], np.arange(100, 900), torch.device("cpu"))
    some = torch.cat(list(rows.chunks(3, 8)))[:, 0]
    assert some.tolist() == [100 + 100 * i for i in range(8)]
    assert torch.equal(torch.cat(list(rows.chunks(7))), rows[np.arange(800)])


@pytest.mark.parametrize("name", ["monoloss_jumprelu", "alexnet"])
def test_learned_thresholds_move_and_make_codes_sparser(name, tmp_path):
    loose = _fit(tmp_path / "loose", _config(name, l0=None, penalty_weight=0.0), steps=150, lr=5e-3)
    tight = _fit(tmp_path / "tight", _config(name, l0=None, penalty_weight=0.02), steps=150, lr=5e-3)
    assert (tight.theta - tight.config.theta_init).abs().median() > 0.1  # z_pre has unit scale
    assert summary(tmp_path / "tight")["l0"] < 0.6 * summary(tmp_path / "loose")["l0"]
    assert tight.theta.dtype == torch.float32 and loose.theta.min() >= 0


def test_statistics_are_of_train_rows_and_travel_with_the_coder(tmp_path):
    coder = _fit(tmp_path, _config(scale="std"), steps=20)
    x, y = _data()
    np.testing.assert_allclose(coder.x_mean, x[TRAIN].mean(0), rtol=1e-5)
    np.testing.assert_allclose(coder.x_scale, x[TRAIN].std(0), rtol=1e-4)
    np.testing.assert_allclose(coder.y_scale, np.sqrt(y[TRAIN].var(0).mean()), rtol=1e-4)
    assert torch.equal(SparseCoder.from_pretrained(tmp_path).x_scale, coder.x_scale)


def test_rows_scaled_by_themselves_are_measured_in_units_of_x(tmp_path):
    coder = _fit(tmp_path, _config("monoloss_jumprelu", centre="none", scale="rows", l0=None), steps=200, lr=5e-3)
    x, _ = _data()
    mean, spread = x[TRAIN].mean(1), x[TRAIN].std(1, ddof=1)
    np.testing.assert_allclose(coder.y_mean, np.full(D, mean.mean()), rtol=1e-5)
    np.testing.assert_allclose(coder.y_scale, np.full(D, np.sqrt(np.mean(spread**2))), rtol=1e-5)
    with torch.no_grad():
        y_hats = coder(torch.from_numpy(x[VAL])).y_hats
    fvu = np.square(x[VAL] - y_hats[-1].numpy()).sum() / np.square(x[VAL] - x[VAL].mean(0)).sum()
    assert summary(tmp_path)["fvu"] == pytest.approx(fvu, rel=1e-4) and fvu < 0.5
    history = read_history(tmp_path).query("split == 'train'")
    assert history["fvu"].iloc[-1] < 0.5
    measured = scan(coder, x, x, VAL)
    assert measured.summary["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert measured.progressive["fvu"].iloc[-1] == pytest.approx(fvu, rel=1e-5)


def test_given_target_scale_weights_the_units(tmp_path):
    x, y = _data()
    config, scale = _config().with_(target_scale="logit"), np.geomspace(0.1, 10, O)
    coder = fit(config, x, y, TRAIN, VAL, TrainConfig(steps=5), tmp_path, y_scale=scale)
    np.testing.assert_allclose(coder.y_scale, scale, rtol=1e-6)
    with pytest.raises(ValueError, match="y_scale goes with"):
        fit(config, x, y, TRAIN, VAL, TrainConfig(steps=5), tmp_path / "b")


def test_logit_scale_makes_errors_count_by_their_weight_in_the_logit():
    _, y = _data()
    rows, w = Rows(y, TRAIN, torch.device("cpu")), np.linspace(-2, 2, O)
    scale = logit_scale(rows, w, floor=0.0)
    np.testing.assert_allclose(scale * np.abs(w), (scale * np.abs(w))[0])
    assert np.mean(y[TRAIN].var(0) / scale**2) == pytest.approx(1.0, rel=1e-4)
    assert logit_scale(rows, np.stack([w, w], 1)).shape == (O,)


def test_memory_map_and_array_train_to_the_same_weights(tmp_path):
    x, y = _data()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    a = fit(_config(), x, y, TRAIN, VAL, TrainConfig(steps=15), tmp_path / "a")
    b = fit(_config(), mapped, y, TRAIN, VAL, TrainConfig(steps=15), tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_sampler_is_a_function_of_the_step_and_covers_an_epoch():
    sampler = Sampler(10, 3, seed=4)
    first = [sampler(i) for i in range(3)]
    assert len(np.unique(np.concatenate(first))) == 9
    again = Sampler(10, 3, seed=4)
    assert np.array_equal(again(5), sampler(5)) and np.array_equal(again(1), first[1])
    assert len(Sampler(2, 64, 0)(7)) == 2


def test_sampler_keeps_the_last_rows_and_whole_images_when_asked():
    last = [Sampler(10, 4, 0, drop_last=False)(i) for i in range(3)]
    assert [len(part) for part in last] == [4, 4, 2] and len(np.unique(np.concatenate(last))) == 10
    images = Sampler(12, 2, 0, tokens=3)  # four images of three rows
    assert images.per_epoch == 2 and images.batch == 6
    assert sorted(np.concatenate([images(0), images(1)])) == list(range(12))
    assert np.array_equal(images(0).reshape(2, 3) % 3, [[0, 1, 2]] * 2)


@pytest.mark.parametrize("name", ["transcoder", "msae_uw"])
def test_parts_of_a_batch_add_up_to_its_step(name, tmp_path):
    whole, parts = (
        _fit(tmp_path / str(n), _config(name, l0=16), steps=3, lr=1e-3, accumulate=n, drop_last=False) for n in (1, 3)
    )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    a, b = (read_history(tmp_path / n).query("split == 'train'") for n in "13")
    np.testing.assert_allclose(a[["loss", "fvu", "l0"]], b[["loss", "fvu", "l0"]], rtol=1e-4)


def test_moments_are_exact_far_from_zero():
    values = (np.random.default_rng(0).normal(size=(1000, 3)) + 1e4).astype(np.float32)
    mean, variance = moments(Rows(values, np.arange(1000), torch.device("cpu")), size=64)
    np.testing.assert_allclose(mean, values.astype(np.float64).mean(0))
    np.testing.assert_allclose(variance, values.astype(np.float64).var(0), rtol=1e-9)


def test_schedules_by_hand():
    config = TrainConfig(lr=1.0, schedule="linear", decay_start=0.5, warmup=0.2)
    assert [config.lr_at(s, 10) for s in (0, 1, 4)] == [0.5, 1.0, 1.0]
    assert config.lr_at(9, 10) == pytest.approx(0.0) and config.lr_at(5, 10) == pytest.approx(0.8)
    cosine = TrainConfig(lr=1.0, schedule="cosine", final_lr=0.01)
    assert cosine.lr_at(9, 10) == pytest.approx(0.01) and cosine.lr_at(4, 10) == pytest.approx(0.505)
    msae = TrainConfig(lr=1.0, schedule="linear", decay_start=0.8, schedule_by="epoch")  # 30 epochs of 2 steps
    rates = [msae.lr_at(2 * e + 1, 60, 2) for e in (0, 23, 24, 25, 29)]
    assert rates == pytest.approx([1, 1, 1, 5 / 6, 1 / 6])


@pytest.mark.parametrize(
    ("rows", "x_shape", "message"),
    [(TRAIN[:0], (N, D), "0 train rows"), (TRAIN, (N, D + 1), r"\(700, 17\).*expected \(700, 16\)")],
)
def test_bad_data_is_refused_with_the_numbers(rows, x_shape, message, tmp_path):
    x = np.zeros(x_shape, np.float32)
    with pytest.raises(ValueError, match=message):
        fit(_config(), x, np.zeros((N, O), np.float32), rows, VAL, TrainConfig(steps=2), tmp_path)
    with pytest.raises(ValueError, match="the same in every train row"):
        fit(_config(), *(np.ones((N, w), np.float32) for w in (D, O)), TRAIN, VAL, TrainConfig(steps=2), tmp_path)


def test_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    x, y = _data()
    x[3] = np.inf
    with pytest.raises(ValueError, match=r"lower lr|finite"):
        fit(_config(centre="none", scale="none"), x, y, TRAIN, VAL, TrainConfig(steps=40, log_every=5), tmp_path)


def test_zero_steps_between_validations_is_once_an_epoch(tmp_path):
    x, y = _data()
    settings = TrainConfig(steps=0, epochs=3, batch=100, val_every=0, log_every=5)
    fit(_config(), x, y, TRAIN, VAL, settings, tmp_path)
    history = read_history(tmp_path)
    per_epoch = len(TRAIN) // 100
    assert history.loc[history["split"] == "val", "step"].tolist() == [per_epoch, 2 * per_epoch, 3 * per_epoch]


def test_one_validation_row_leaves_the_fvu_empty(tmp_path):
    x, settings = _data()[0], TrainConfig(steps=4, batch=4, lr=1e-3)
    config = SparseCoderConfig.preset("topk", D, D, n_latents=32, l0=4)
    fit(config, x, None, np.arange(4), np.arange(4, 5), settings, tmp_path / "one")
    one = summary(tmp_path / "one")
    assert (
        one["fvu"] is None and one["loss"] > 0 and one["l0"] == 4 and read_history(tmp_path / "one")["fvu"].isna().any()
    )
    fit(config, x, None, np.arange(4), np.arange(4, 6), settings, tmp_path / "two")
    assert summary(tmp_path / "two")["fvu"] > 0


def test_neighbour_means_are_those_of_the_plain_definition():
    """Over the nearest of a row's label, itself first; at most a tenth of that label's rows; other rows stay."""
    rng, n = np.random.default_rng(3), 60
    x, y = rng.normal(size=(n + 5, 3)).astype(np.float32), rng.normal(size=(n + 5, 2)).astype(np.float32)
    labels, rows, expected = rng.integers(0, 2, n + 5), np.arange(2, n), y.copy()
    for i in rows:
        same = [j for j in rows if labels[j] == labels[i]]
        near = sorted(same, key=lambda j: np.linalg.norm(x[i] - x[j]))
        expected[i] = y[near[: min(2, len(same) // 10)]].mean(0)
    np.testing.assert_allclose(neighbour_means(x, y, rows, labels, 2), expected, rtol=1e-6)
    assert np.array_equal(neighbour_means(x, y, rows, labels, 1), y)
    assert not np.array_equal(neighbour_means(x, y, rows, np.zeros(n + 5, int), 3), expected)
