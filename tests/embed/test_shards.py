"""Embeddings on disk: resumed after a kill with the same bytes, refused when damaged."""

import json
import os
import random
import signal
import time

import numpy as np
import pandas as pd
import pytest

from mtlib.embed.embedding import Shards
from mtlib.embed.store import load_parts, open_array, open_data, save_array, write_manifest
from mtlib.run.artifacts import ArtifactError
from mtlib.run.stage import Stage
from tests.synthetic import write_embed_stage

N, D, BATCH = 200, 8, 7


def rows_of(files):
    """(n, D) float32, whole numbers: exact on every processor."""
    return np.float32(files[:, None] * np.arange(1, D + 1))


def batches(files, pause=0.0):
    """Every fifth file is bad; a row depends on its file's number only."""
    for start in range(0, len(files), BATCH):
        some = np.asarray(files[start : start + BATCH])
        good = some[some % 5 != 3]
        time.sleep(pause)
        status = ["corrupt" if f % 5 == 3 else "ok" for f in some]
        yield (
            {"x": rows_of(good)},
            pd.DataFrame({"status": status, "detail": "", "sha256": [f"{f:x}" for f in some]}),
        )


def write(folder, pause=0.0, key=1, order=1):
    """Write what is missing; returns (outcomes, the shards that were missing)."""
    shards = Shards(folder / "shards", N, 3 * BATCH, {"key": key})
    todo = shards.todo()
    for i in todo[::order]:
        shards.write(i, list(batches(shards.range(i), pause)))
    return shards.join(folder), todo


def test_whole_run_has_rows_of_the_good_files_in_order(tmp_path):
    outcomes, _ = write(tmp_path)
    good = np.flatnonzero(np.arange(N) % 5 != 3)
    x = open_array(tmp_path / "x.npy", 2)
    assert np.array_equal(x, rows_of(good))
    assert (outcomes["status"] == "ok").sum() == len(x) and len(outcomes) == N


@pytest.mark.parametrize("seed", range(6))
def test_killed_run_resumes_to_identical_bytes(seed, tmp_path):
    write(tmp_path / "whole")
    expected = (tmp_path / "whole" / "x.npy").read_bytes()
    rng, kills = random.Random(seed), 0
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                write(tmp_path / "killed", pause=0.004)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.005, 0.12))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert kills
    outcomes, _ = write(tmp_path / "killed")
    assert (tmp_path / "killed" / "x.npy").read_bytes() == expected
    assert outcomes["sha256"].tolist() == [f"{f:x}" for f in range(N)]


def test_shards_in_any_order_give_the_same_bytes(tmp_path):
    write(tmp_path / "up")
    write(tmp_path / "down", order=-1)
    assert (tmp_path / "up" / "x.npy").read_bytes() == (tmp_path / "down" / "x.npy").read_bytes()


def test_resumed_run_does_only_what_is_left_and_another_key_starts_over(tmp_path):
    shards = Shards(tmp_path / "shards", N, 3 * BATCH, {"key": 1})
    for i in (0, 1, 4):
        shards.write(i, list(batches(shards.range(i))))
    assert write(tmp_path, key=1)[1] == [2, 3, 5, 6, 7, 8, 9]
    assert write(tmp_path, key=1)[1] == [] and write(tmp_path, key=2)[1] == list(range(10))


def test_damaged_shard_is_done_again(tmp_path):
    write(tmp_path)
    expected = (tmp_path / "x.npy").read_bytes()
    shard = tmp_path / "shards" / "00001.npz"
    data = bytearray(shard.read_bytes())
    data[data.index(rows_of(np.array([21])).tobytes())] ^= 1
    shard.write_bytes(bytes(data))
    torn = tmp_path / "shards" / "00003.npz"
    torn.write_bytes(torn.read_bytes()[:-9])
    assert write(tmp_path)[1] == [1, 3]
    assert (tmp_path / "x.npy").read_bytes() == expected


def test_batches_that_do_not_add_up_are_an_error(tmp_path):
    shards = Shards(tmp_path / "shards", N, 21, {})
    with pytest.raises(ArtifactError, match="20 files embedded, expected 21"):
        shards.write(0, list(batches(range(20))))
    wrong = [({"x": np.zeros((3, D), np.float32)}, pd.DataFrame({"status": ["ok"] * 21, "detail": "", "sha256": ""}))]
    with pytest.raises(ArtifactError, match="3 embeddings for 21"):
        shards.write(0, wrong)
    with pytest.raises(ArtifactError, match=r"00000\.npz: missing or damaged; run the stage again"):
        shards.join(tmp_path)


def test_tokens_become_rows_in_order_beside_the_embeddings(tmp_path):
    shards = Shards(tmp_path / "shards", 3, 2, {})
    outcome = {"detail": "", "sha256": ""}
    x = np.arange(2 * 4 * 5, dtype=np.float32).reshape(2, 4, 5)
    first = pd.DataFrame({"status": ["ok", "corrupt"]} | outcome)
    shards.write(0, [({"x": x[:1], "embedding": np.ones((1, 3))}, first)])
    shards.write(1, [({"x": x[1:], "embedding": np.zeros((1, 3))}, first[:1])])
    assert shards.join(tmp_path)["status"].tolist() == ["ok", "corrupt", "ok"]
    assert np.array_equal(open_array(tmp_path / "x.npy"), x.reshape(8, 5))
    assert np.array_equal(open_array(tmp_path / "embedding.npy"), [[1] * 3, [0] * 3])


def test_array_header_that_claims_petabytes_is_refused_without_allocating(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 1000)}
    with open(tmp_path / "x.npy", "wb") as f:
        np.lib.format.write_array_header_1_0(f, header)
        f.write(b"\0" * 64)
    with pytest.raises(ArtifactError, match=r"x.npy: its header .* means 4000000000000128 bytes, but the file has 192"):
        open_array(tmp_path / "x.npy")


def test_pickled_truncated_and_foreign_arrays_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    np.save(tmp_path / "p.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros((4, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    (tmp_path / "no.npy").write_bytes(b"PK\3\4 not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    for name, say in {
        "p": "pickle",
        "cut": "means",
        "no": "not a .npy",
        "empty": "not a .npy",
        "flat": "dimensions",
    }.items():
        with pytest.raises(ArtifactError, match=say):
            open_array(tmp_path / f"{name}.npy", 2)
    assert not (tmp_path / "executed").exists()


def test_manifest_rows_other_than_array_rows_are_refused(tmp_path):
    save_array(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    frame = pd.DataFrame({"status": ["ok", "corrupt", "ok", "ok"], "row": pd.array([0, pd.NA, 1, 2], dtype="Int64")})
    write_manifest(tmp_path, frame)
    for rows in ([0, pd.NA, 1, 3], [0, 1, 1, 2], [0, pd.NA, 2, 1], [pd.NA, pd.NA, 0, 1]):
        with pytest.raises(ArtifactError):
            write_manifest(tmp_path, frame.assign(row=pd.array(rows, dtype="Int64")))


def test_open_data_joins_what_later_stages_need(tmp_path):
    folder = write_embed_stage(tmp_path, 120)
    data = open_data(Stage("03_train", str(tmp_path)))
    assert data.x.shape == (120, 32) and data.y is None and data.images(5).is_file()
    assert data.truth["path"].tolist() == data.manifest["path"].tolist()
    rows = [data.rows(s) for s in ("train", "val", "test", "unlabelled")]
    assert sorted(np.concatenate(rows)) == list(range(120)) and set(data.labels(rows[3])) == {-1}
    assert np.array_equal(data.rows(("train", "val")), np.sort(np.concatenate(rows[:2])))
    with pytest.raises(ValueError, match="split"):
        data.rows("validation")
    facts = json.loads((folder / "meta.json").read_text())["facts"]
    assert load_parts(folder, facts).x.shape == data.x.shape


def test_open_data_refuses_a_classifier_of_other_embeddings(tmp_path):
    write_embed_stage(tmp_path, 60)
    classify = Stage("02_classify", str(tmp_path))
    open_data(classify)
    save_array(classify.out / "y.npy", np.zeros((60, 4), np.float32))
    save_array(classify.out / "logits.npy", np.zeros(60, np.float32))
    classify.finish(status="ok", reason="", d_hidden=4, n_outputs=1)
    assert open_data(Stage("03_train", str(tmp_path))).y.shape == (60, 4)
    write_embed_stage(tmp_path, 60, seed=5)
    with pytest.raises(ArtifactError, match="other embeddings"):
        open_data(Stage("03_train", str(tmp_path)))
