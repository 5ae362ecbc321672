"""Embeddings written in shards: a killed run continues where it stopped and ends with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.store import save_array
from mtlib.run.artifacts import ArtifactError, atomic, sha256, write_json

OUTCOME = ("status", "detail", "sha256")  # what embedding adds to the line of each file


def write_embeddings(
    folder: Path,
    shards: Path,
    n_files: int,
    batches: Callable[[int], Iterable[tuple[np.ndarray, pd.DataFrame]]],
    key: dict,
    shard_files: int = 1024,
) -> pd.DataFrame:
    """Embed `n_files` files into folder/x.npy, so that a killed run continues and ends with the same bytes.

    Args:
        folder:  receives x.npy.
        shards:  scratch folder; whole shards of an earlier run with the same `key` are kept, the rest is redone.
        n_files: number of files, in manifest order.
        batches: called with the index of the first file still to do; yields, in order, (x of the ok files of a batch
            (b, D) float32, a frame with the columns OUTCOME of all files of the batch).
        key:     what the shards depend on (encoder fingerprint, files, batch size); JSON values.
        shard_files: files per shard, rounded up to whole batches.
    Returns: frame of n_files lines with the columns OUTCOME.
    Raises: ArtifactError when the batches do not add up to the files.
    """
    shards.mkdir(parents=True, exist_ok=True)
    if _read_json(shards / "key.json") != json.loads(json.dumps(key)):
        shutil.rmtree(shards)
        write_json(shards / "key.json", key)
    done = _whole_shards(shards)
    n_done = sum(len(json.loads((shards / f"{i:05d}.json").read_text())["outcomes"]) for i in range(done))
    buffer: list[tuple[np.ndarray, pd.DataFrame]] = []
    for x, outcomes in batches(n_done) if n_done < n_files else ():
        if len(x) != (outcomes["status"] == "ok").sum():
            raise ArtifactError(f"{len(x)} embeddings for {(outcomes['status'] == 'ok').sum()} ok files in a batch")
        buffer.append((x, outcomes))
        n_done += len(outcomes)
        if sum(len(o) for _, o in buffer) >= shard_files or n_done == n_files:
            _write_shard(shards, done, buffer)
            done, buffer = done + 1, []
    if n_done != n_files:
        raise ArtifactError(f"{n_done} files embedded, expected {n_files}")
    return _join_shards(shards, done, folder / "x.npy")


def _write_shard(shards: Path, index: int, buffer: list[tuple[np.ndarray, pd.DataFrame]]) -> None:
    """One shard: the array first, then the .json that makes it count."""
    x = np.concatenate([x for x, _ in buffer]).astype(np.float32, copy=False)
    path = shards / f"{index:05d}.npy"
    save_array(path, x)
    outcomes = pd.concat([o for _, o in buffer])[list(OUTCOME)].to_numpy().tolist()
    write_json(path.with_suffix(".json"), {"shape": list(x.shape), "sha256": sha256(path), "outcomes": outcomes})


def _whole_shards(shards: Path) -> int:
    """Number of leading shards that are complete and undamaged."""
    index = 0
    while True:
        path = shards / f"{index:05d}.npy"
        record = _read_json(path.with_suffix(".json"))
        if record is None or not path.is_file() or sha256(path) != record["sha256"]:
            return index
        index += 1


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _join_shards(shards: Path, count: int, target: Path) -> pd.DataFrame:
    """Concatenate shards into one .npy, one shard in memory at a time."""
    records = [json.loads((shards / f"{i:05d}.json").read_text(encoding="utf-8")) for i in range(count)]
    shapes = [r["shape"] for r in records if r["shape"][0]]
    if not shapes:
        raise ArtifactError("no file could be embedded: all of them are bad (see tables/01_files.csv)")
    if len({s[1] for s in shapes}) != 1:
        raise ArtifactError(f"shards of different widths: {sorted({s[1] for s in shapes})}")
    header = {"descr": "<f4", "fortran_order": False, "shape": (sum(s[0] for s in shapes), shapes[0][1])}
    with atomic(target) as tmp, open(tmp, "wb") as f:
        np.lib.format.write_array_header_1_0(f, header)
        for i in range(count):
            f.write(np.load(shards / f"{i:05d}.npy", allow_pickle=False).astype("<f4").tobytes())
    return pd.DataFrame([o for r in records for o in r["outcomes"]], columns=list(OUTCOME))
