"""Embeddings written in shards: a killed run continues where it stopped and ends with the same bytes.

A shard is a fixed range of files: <index>.<name>.npy for each array, then <index>.json with their hashes and the outcome
of every file, which makes the shard count. Shards may be written in any order and by several processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.store import save_array
from mtlib.run.artifacts import ArtifactError, atomic, sha256, write_json

OUTCOME = ("status", "detail", "sha256")  # what embedding adds to the line of each file


class Shards:
    """The shards of `n_files` files in a scratch folder.

    Args:
        folder:  shards of an earlier run with the same `key` are kept, others removed.
        n_files: number of files, in manifest order.
        size:    files per shard.
        key:     what the shards depend on (encoder, files, batch size); JSON values.
    """

    def __init__(self, folder: Path, n_files: int, size: int, key: dict):
        self.folder, self.n_files, self.size = Path(folder), n_files, size
        key = json.loads(json.dumps(key | {"n_files": n_files, "size": size}))
        if _read_json(self.folder / "key.json") != key:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(self.folder / "key.json", key)

    def __len__(self) -> int:
        return -(-self.n_files // self.size)

    def range(self, index: int) -> range:
        """Files of a shard."""
        return range(index * self.size, min((index + 1) * self.size, self.n_files))

    def todo(self) -> list[int]:
        """Shards that are missing or damaged, ascending."""
        return [i for i in range(len(self)) if not self._whole(i)]

    def write(self, index: int, batches: Sequence[tuple[Mapping[str, np.ndarray], pd.DataFrame]]) -> int:
        """Write one shard.

        Args:
            index:   of the shard.
            batches: in order: (name -> (b, ...) float32 array of the b ok files, frame with the columns OUTCOME of all files).
        Returns: number of files.
        Raises: ArtifactError when arrays, outcomes and the shard's range do not add up.
        """
        outcomes = pd.concat([o for _, o in batches])[list(OUTCOME)]
        if len(outcomes) != len(self.range(index)):
            raise ArtifactError(f"shard {index}: {len(outcomes)} files embedded, expected {len(self.range(index))}")
        n_ok, arrays = int((outcomes["status"] == "ok").sum()), {}
        for name in batches[0][0]:
            x = np.concatenate([arrays[name] for arrays, _ in batches]).astype("<f4", copy=False)
            if len(x) != n_ok:
                raise ArtifactError(f"shard {index}: {len(x)} embeddings for {n_ok} ok files")
            save_array(self._array(index, name), x)
            arrays[name] = {"shape": list(x.shape), "sha256": sha256(self._array(index, name))}
        write_json(self._record(index), {"arrays": arrays, "outcomes": outcomes.to_numpy().tolist()})
        return len(outcomes)

    def join(self, folder: Path) -> pd.DataFrame:
        """Concatenate the shards into folder/<name>.npy (float32; tokens of an image become rows), one shard in memory at a time.

        Returns: frame of n_files lines with the columns OUTCOME.
        Raises: ArtifactError when a shard is missing, no file was embedded, or widths differ.
        """
        records = [_read_json(self._record(i)) for i in range(len(self))]
        if missing := [i for i, record in enumerate(records) if record is None]:
            raise ArtifactError(f"{self.folder}: shard {missing[0]} and {len(missing) - 1} more are not written")
        if not any(r["arrays"]["x"]["shape"][0] for r in records):
            raise ArtifactError("no file could be embedded: all of them are bad (see tables/01_files.csv)")
        for name in records[0]["arrays"]:
            self._join(records, name, Path(folder) / f"{name}.npy")
        return pd.DataFrame([o for r in records for o in r["outcomes"]], columns=list(OUTCOME))

    def _join(self, records: list[dict], name: str, target: Path) -> None:
        shapes = [r["arrays"][name]["shape"] for r in records]
        widths = {tuple(s[1:]) for s in shapes if s[0]}
        if len(widths) != 1:
            raise ArtifactError(f"shards of different widths: {sorted(widths)}")
        *tokens, width = widths.pop()
        n_rows = sum(s[0] for s in shapes) * (tokens[0] if tokens else 1)
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, width)}
        with atomic(target) as tmp, open(tmp, "wb") as f:
            np.lib.format.write_array_header_1_0(f, header)
            for i, shape in enumerate(shapes):
                if shape[0]:
                    f.write(np.load(self._array(i, name), mmap_mode="r", allow_pickle=False).data)

    def _array(self, index: int, name: str) -> Path:
        return self.folder / f"{index:05d}.{name}.npy"

    def _record(self, index: int) -> Path:
        return self.folder / f"{index:05d}.json"

    def _whole(self, index: int) -> bool:
        record = _read_json(self._record(index))
        return record is not None and all(
            self._array(index, name).is_file() and sha256(self._array(index, name)) == about["sha256"]
            for name, about in record["arrays"].items()
        )


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
