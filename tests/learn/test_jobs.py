"""Fits in processes of their own: the same bytes from several workers, the same coder from several processes."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn.config import TrainConfig
from mtlib.learn.jobs import JobFailed, run_all
from mtlib.learn.parallel import Group
from mtlib.learn.train import fit, read_history, summary

D, O, N = 16, 12, 400  # noqa: E741
TRAIN, VAL = np.arange(300), np.arange(300, N)
# One preset for each thing that compares rows of a batch: running threshold and AuxK; MonoLoss; L0 steering.
SHARED = ["matryoshka_transcoder_shared", "monoloss_jumprelu", "monoloss_batch_topk", "matryoshka_transcoder"]


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, 6)) @ rng.normal(size=(6, D)) + 0.3 * rng.normal(size=(N, D)) + 2).astype(np.float32)
    return x, np.maximum(x @ rng.normal(size=(D, O)).astype(np.float32), 0)


def _fits(folder: Path, names: list[str], **changes) -> list[dict]:
    x, y = _arrays()
    common = dict(n_latents=64, l0=6, dead_after=200, centre="mean", scale="rms")
    settings = TrainConfig(**(dict(steps=14, batch=50, lr=3e-3, val_every=7, l0_target=6, grad_clip=1.0) | changes))
    fits = []
    for name in names:
        own = dict(centre="none", scale="none") if name.startswith("monoloss") else {}
        config = SparseCoderConfig.preset(name, D, O, **(common | own))
        t = y if config.target == "y" else x
        rows = dict(rows_train=TRAIN, rows_val=VAL)
        fits.append(dict(rows, config=config, train_config=settings, x=x, t=t, folder=folder / name, label=name))
    return fits


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_workers_write_the_same_bytes_as_one_after_another(one_thread, tmp_path):
    names = ["matryoshka_transcoder_shared", "sae"]
    run_all(_fits(tmp_path / "serial", names))
    run_all(_fits(tmp_path / "pool", names), fits_at_once=2)
    assert _bytes(tmp_path / "pool") == _bytes(tmp_path / "serial")
    assert len(_bytes(tmp_path / "pool")) == 8  # and nothing is left of the jobs


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for job in _fits(folder, SHARED):
        fit(**job, group=Group())
    dist.barrier()
    dist.destroy_process_group()


def _assert_same_coder(one: Path, two: Path) -> None:
    a, b = SparseCoder.from_pretrained(one).state_dict(), SparseCoder.from_pretrained(two).state_dict()
    for key in a:
        torch.testing.assert_close(
            a[key], b[key], rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{one.name} {key}: {m}"
        )
    columns = ["loss", "fvu", "l0", "dead", "reconstruction", "penalty", "mono", "aux"]
    np.testing.assert_allclose(read_history(one)[columns], read_history(two)[columns], rtol=2e-3, atol=1e-4)
    assert summary(two)["step"] == summary(one)["step"]


def test_two_processes_train_the_same_coder_as_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtlib.learn.train", "tests.learn.test_train", "tests.learn.test_jobs"])
    two = tmp_path / "two"
    two.mkdir()
    ranks = [context.Process(target=_rank, args=(rank, two)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    run_all(_fits(tmp_path / "one", SHARED))
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for name in SHARED:
        _assert_same_coder(tmp_path / "one" / name, two / name)
    revived = [name for name in SHARED if read_history(two / name)["aux"].max() > 0]
    assert revived == ["matryoshka_transcoder_shared", "monoloss_batch_topk"]  # those with AuxK and dead latents


@pytest.mark.slow
def test_processes_share_a_fit(tmp_path):
    run_all(_fits(tmp_path / "one", ["sae"]))
    run_all(_fits(tmp_path / "two", ["sae"]), processes=2)
    _assert_same_coder(tmp_path / "one" / "sae", tmp_path / "two" / "sae")
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["sae"]


def test_a_failing_fit_is_named_with_what_it_said(tmp_path):
    wide = np.ones((N, D + 1), np.float32)
    with pytest.raises(JobFailed, match=r"sae: ValueError: .*\(400, 17\)"):
        run_all([_fits(tmp_path, ["sae"])[0] | {"x": wide, "t": wide}], fits_at_once=2)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sae: a batch of 2 cannot be shared by 3 processes"):
        run_all(_fits(tmp_path, ["sae"], batch=2), processes=3)
    with pytest.raises(ValueError, match="fits_at_once = 0"):
        run_all(_fits(tmp_path, ["sae"]), fits_at_once=0)
