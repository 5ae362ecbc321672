"""Artifacts are complete or absent, and damage is seen."""

import numpy as np
import pytest

from mtlib.run import artifacts
from mtlib.run.artifacts import ArtifactError
from mtlib.run.stage import Stage


@pytest.fixture
def folder(tmp_path):
    stage = Stage("01_embed", str(tmp_path / "run"), params={"seed": 1})
    np.save(stage.out / "x.npy", np.arange(100))
    (stage.out / "checkpoint").mkdir()
    (stage.out / "checkpoint" / "half").touch()
    stage.finish(n_rows=100)
    return stage.out


def test_finish_records_files_and_drops_scratch(folder):
    meta = artifacts.verify(folder)
    assert set(meta["files"]) == {"x.npy", "report.json"}
    assert meta["facts"] == {"n_rows": 100}
    assert meta["params"] == {"seed": 1}
    assert meta["peak_mb"] > 1


def test_flipped_bit_missing_and_added_file_are_named(folder):
    path = folder / "x.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"sha256 mismatch: .*x\.npy"):
        artifacts.verify(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"missing file: .*x\.npy"):
        artifacts.verify(folder)
    raw[-1] ^= 1
    path.write_bytes(raw)
    (folder / "more").touch()
    with pytest.raises(ArtifactError, match=r"unexpected file: .*more"):
        artifacts.verify(folder)


@pytest.mark.parametrize("name", ["01_embed-interactive/meta.json", "stages.json"])
def test_a_flipped_bit_of_a_record_is_refused_by_name_or_changes_nothing(folder, name):
    path = folder.parent / name
    before, whole = path.read_bytes(), artifacts.open_run(folder.parent)
    torn = [
        before[:-9],
        b"[]",
        b"{}",
        b"\xff",
        b"",
        before.replace(b'"files"', b'"giles"').replace(b"01_embed", b"02_x"),
    ]
    for i in range(0, 8 * len(before), 7):
        flipped = bytearray(before)
        flipped[i // 8] ^= 1 << i % 8
        torn.append(bytes(flipped))
    for text in torn:
        path.write_bytes(text)
        try:
            assert artifacts.open_run(folder.parent) == whole and name == "stages.json", "the same in another spelling"
        except ArtifactError as e:
            assert path.name in str(e) and "again" in str(e)


def test_the_meta_of_another_run_is_refused(folder, tmp_path):
    """Whole in itself, but not the one that the run recorded."""
    artifacts.close(folder, stage="01_embed", facts={"n_rows": 99}, inputs={})
    with pytest.raises(ArtifactError, match=r"sha256 mismatch: .*meta\.json is not the one in stages\.json"):
        artifacts.verify(folder)


def test_input_verifies_and_records(folder):
    stage = Stage("02_classify", str(folder.parent))
    assert stage.facts("01_embed") == {"n_rows": 100}
    assert stage.inputs == {"01_embed": artifacts.digest(artifacts.read_meta(folder))}
    with pytest.raises(ArtifactError, match="run notebook 03_train first"):
        stage.input("03_train")
    (folder / "x.npy").unlink()
    with pytest.raises(ArtifactError, match="missing file"):
        Stage("03_train", str(folder.parent)).input("01_embed")


def test_unfinished_folder_is_no_artifact(folder):
    (folder / "meta.json").write_text('{"files"')
    with pytest.raises(ArtifactError, match="not valid JSON"):
        artifacts.verify(folder)
    (folder / "meta.json").unlink()
    with pytest.raises(ArtifactError, match="did not finish"):
        artifacts.verify(folder)


def test_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    artifacts.write_text(path, "old")
    with pytest.raises(OSError, match="disk"), artifacts.atomic(path) as tmp:
        tmp.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_digest_follows_files_and_facts_not_the_record(folder):
    meta = artifacts.read_meta(folder)
    first = artifacts.digest(meta)
    assert artifacts.digest(meta | {"git_commit": "x", "peak_mb": 1, "seconds": 9, "versions": {}}) == first
    assert artifacts.digest(meta | {"facts": {"n_rows": 99}}) != first
    assert artifacts.digest(meta | {"files": {}}) != first


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        artifacts.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_write_left_is_no_part_of_the_artifact(tmp_path):
    stage = Stage("01_embed", str(tmp_path))
    (stage.out / "embeddings").mkdir()
    (stage.out / "embeddings" / ".x.npy.tmp123").write_bytes(b"half")
    (stage.out / "a.txt").write_text("whole")
    assert stage.finish() is None, "the last line of a notebook shows nothing"
    assert set(artifacts.read_meta(stage.out)["files"]) == {"a.txt", "report.json"}


def test_a_notebook_that_runs_again_in_jupyter_does_not_stand_in_the_way_of_the_others(folder):
    again = Stage("01_embed", str(folder.parent))
    assert not (again.out / "x.npy").exists() and artifacts.current(folder.parent) == {}
    Stage("02_classify", str(folder.parent)).finish()
    assert list(artifacts.open_run(folder.parent)) == ["02_classify"]
    again.finish()
    assert set(artifacts.open_run(folder.parent)) == {"01_embed", "02_classify"}
