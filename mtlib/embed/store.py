"""Embeddings on disk: memory-mapped .npy with a manifest, checked when they are read.

embeddings/x.npy             (N, D) float32, row i belongs to the file whose manifest line has row i; with T tokens of a layer
                             (N * T, D): rows i * T .. i * T + T - 1 belong to it
embeddings/embedding.npy     only with a layer: (N, d_out) float32, the final embedding, in the space of the vocabulary
embeddings/manifest.parquet  one line per file found; `row` is null unless the file is ok, non-null rows are 0 .. N-1
vision_model's x.npy         where a vision model was trained on the images: its tokens, (N * T, D), which then are x
embeddings/vocabulary.npy    (V, D) float32 text embeddings; vocabulary.csv: phrase, kind, family, cause
truth.parquet                only for rendered scenes: what is really wrong in each image
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from mtlib.embed.images import load_image
from mtlib.embed.manifest import ALL_SPLITS, unescape
from mtlib.run import artifacts
from mtlib.run.artifacts import ArtifactError, atomic, digest, read_meta
from mtlib.run.stage import Stage, read_back

ADDED = ("vision_model", "02_classify")  # stages whose artifacts add to the rows of 01


def open_array(path: Path, ndim: int | None = None) -> np.memmap:
    """Open a .npy file memory-mapped after checking its header against the file's size; nothing is allocated.

    Args: ndim: number of dimensions it must have; None for any.
    Raises: ArtifactError naming the file when it is no .npy, holds objects (pickle), or is longer or shorter than its
        header says.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            version = np.lib.format.read_magic(f)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(f)
            offset = f.tell()
    except FileNotFoundError as e:
        raise ArtifactError(f"{path}: no such file") from e
    except (ValueError, OSError, EOFError) as e:
        raise ArtifactError(f"{path}: not a .npy file ({e})") from e
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ArtifactError(f"{path}: holds {dtype}, expected plain numbers (pickled objects are refused)")
    claimed, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if claimed != size:
        raise ArtifactError(f"{path}: its header {shape} {dtype} means {claimed} bytes, but the file has {size}")
    if ndim is not None and len(shape) != ndim:
        raise ArtifactError(f"{path}: shape {shape}, expected {ndim} dimensions")
    if 0 in shape:
        raise ArtifactError(f"{path}: shape {shape} has no rows or columns")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def save_array(path: Path, value: np.ndarray) -> None:
    """Write a .npy file atomically, never pickled."""
    with atomic(path) as tmp, open(tmp, "wb") as f:
        np.save(f, np.ascontiguousarray(value), allow_pickle=False)


def write_rows(path: Path, shape: tuple[int, int], parts: Iterable[np.ndarray]) -> None:
    """Write float32 rows part by part into a .npy file, atomically, so that they are never all in memory."""
    with atomic(path) as tmp, open(tmp, "wb") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})
        for part in parts:
            f.write(np.ascontiguousarray(part, "<f4").data)


def unit_rows(w: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Rows of w (..., D) divided by their norms, computed in `dtype`; rows of norm 0 stay 0."""
    w = np.asarray(w, dtype)
    norm = np.linalg.norm(w, axis=-1, keepdims=True)
    return np.divide(w, norm, out=np.zeros_like(w), where=norm > 0)


def write_manifest(folder: Path, manifest: pd.DataFrame, tokens: int = 1) -> None:
    """Write folder/manifest.parquet after checking it against folder/x.npy, which has `tokens` rows per image.

    Raises: ArtifactError when rows and files do not match one to one.
    """
    _check_rows(manifest, len(open_array(folder / "x.npy", 2)), folder, tokens)
    with atomic(folder / "manifest.parquet") as tmp:
        manifest.to_parquet(tmp, index=False)


def _check_rows(manifest: pd.DataFrame, n_rows: int, folder: Path, tokens: int = 1) -> None:
    ok = manifest["status"] == "ok"
    if not (ok == manifest["row"].notna()).all():
        raise ArtifactError(f"{folder}/manifest.parquet: a row without status ok, or an ok file without a row")
    rows = manifest.loc[ok, "row"].to_numpy(dtype=np.int64)
    if len(rows) * tokens != n_rows or not np.array_equal(rows, np.arange(len(rows))):
        each = f", {tokens} for each image" if tokens > 1 else ""
        raise ArtifactError(f"{folder}: manifest has {len(rows)} rows, x.npy has {n_rows}{each}; they must be 0 .. N-1")


@dataclass(frozen=True)
class Data:
    """What stages 02 to 07 read: embeddings and everything known about each row, aligned.

    x (N, D) float32 memmap; manifest: frame of the ok files, index = row; y (N, O), logits (N,) or (N, C) or None when
    02 has not run or was skipped; truth: frame aligned to the rows, or None; vocabulary (V, d_out) and phrases (V lines).
    With T tokens per image every line of manifest and truth is repeated T times, so that it still stands at its row of x.
    embedding (N, d_out): of each row's image in the space of the vocabulary; x itself unless x is a layer's.
    """

    x: np.ndarray
    manifest: pd.DataFrame
    vocabulary: np.ndarray
    phrases: pd.DataFrame
    facts: dict
    y: np.ndarray | None = None
    logits: np.ndarray | None = None
    truth: pd.DataFrame | None = None
    image_root: Path | None = None
    files: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    final: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """T, the rows of x that each image has: image i has rows i * T .. i * T + T - 1."""
        return int(self.facts.get("tokens_per_image", 1))

    @property
    def pictures(self) -> bool:
        """Whether a report may show the images; False where they are not to be published (`pictures: false` in 01)."""
        return bool(self.facts.get("pictures", True))

    @property
    def embedding(self) -> np.ndarray:
        """(N, d_out) final embedding of each row's image, in the space of the vocabulary."""
        if self.final is None:
            return self.x
        return self.final if self.tokens == 1 else np.repeat(self.final, self.tokens, axis=0)

    def embedding_at(self, rows: np.ndarray) -> np.ndarray:
        """(n, d_out) `embedding` of some rows, without making it whole."""
        return self.x[rows] if self.final is None else self.final[np.asarray(rows) // self.tokens]

    def per_image(self) -> Data:
        """The same with one row per image: the mean over its tokens, (N / T, D) in memory; itself when T = 1."""
        if self.tokens == 1:
            return self
        t, first = self.tokens, np.arange(0, len(self.x), self.tokens)
        mean = np.empty((len(first), self.x.shape[1]), np.float32)
        for start in range(0, len(first), 1024):
            part = np.asarray(self.x[start * t : (start + 1024) * t], np.float32)
            mean[start : start + 1024] = part.reshape(-1, t, part.shape[1]).mean(axis=1)
        manifest, truth = (
            f if f is None else f.iloc[first].reset_index(drop=True) for f in (self.manifest, self.truth)
        )
        facts = self.facts | {"tokens_per_image": 1, "n_rows": len(first)}
        return replace(self, x=mean, manifest=manifest, truth=truth, facts=facts, y=None, logits=None)

    def rows(self, split: str | tuple[str, ...], unique: bool = True) -> np.ndarray:
        """Row numbers of a split, ascending; without repeated files when `unique`. "all" means every row."""
        names = (split,) if isinstance(split, str) else tuple(split)
        if unknown := set(names) - set(ALL_SPLITS) - {"all"}:
            raise ValueError(f"split = {sorted(unknown)[0]!r} is not one of {ALL_SPLITS}")
        keep = np.ones(len(self.manifest), bool) if "all" in names else self.manifest["split"].isin(names).to_numpy()
        if unique:
            keep = keep & (self.manifest["duplicate_of"] == "").to_numpy()
        return np.flatnonzero(keep)

    def labels(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(n,) int64 labels of rows: 1 implausible, 0 plausible, -1 unknown."""
        label = self.manifest["label"].fillna(-1).to_numpy(dtype=np.int64)
        return label if rows is None else label[rows]

    @property
    def label_names(self) -> np.ndarray:
        """(N,) str: plausible, implausible, unlabelled."""
        return np.array(["plausible", "implausible", "unlabelled"])[self.labels()]

    def images(self, row: int) -> Path | None:
        """Path of the image of a row; None when the embeddings came as arrays without images."""
        return None if self.image_root is None else self.image_root / unescape(self.manifest["path"].iloc[int(row)])

    def thumbnail(self, row: int, side: int = 128) -> Image.Image:
        """The image of a row, fitted into a white square. Raises: ImageRefused "changed" when the file is not what was embedded."""
        image, _ = load_image(self.images(row), unchanged=self.manifest["sha256"].iloc[row])
        return ImageOps.pad(image, (side, side), color=(255, 255, 255))

    def sample(self, n_lines: int = 16, n_columns: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
        """Some rows of each class, of each label of it where there are labels: name of the line -> row numbers."""
        lines = self.manifest["class_name"].to_numpy(dtype=str)
        if self.facts["labels"] == "plausibility":
            lines = np.char.add(np.char.add(self.label_names, "\n"), lines)
        rng, names = np.random.default_rng(seed), np.unique(lines)
        if len(names) > n_lines:
            names = names[np.sort(rng.permutation(len(names))[:n_lines])]
        return {str(name): rng.permutation(np.flatnonzero(lines == name))[:n_columns] for name in names}

    def caption(self, row: int) -> str:
        """What to write for a row that has no image: its word."""
        return str(self.manifest["class_name"].iloc[int(row)] or self.manifest["path"].iloc[int(row)])


def open_data(stage: Stage) -> Data:
    """The joined view for a stage: 01's artifact, and what stages before it ADDED to the rows.

    Raises: ArtifactError when an artifact is missing or damaged, or was made from other embeddings.
    """
    added = [name for name in ADDED if stage.name not in ADDED and stage.has(name)]
    return load_data(stage.input("01_embed"), *(stage.input(name) for name in added))


def open_run(run_dir: Path) -> Data:
    """The joined view of a finished run for readers outside the pipeline (viewer, labeler), verified."""
    folders = artifacts.open_run(run_dir, ["01_embed"])
    return load_data(folders["01_embed"], *map(folders.get, ADDED))


def load_data(embed: Path, *added: Path | None) -> Data:
    """Join the artifact of 01_embed and those of the stages that ADDED to it (folders already verified)."""
    whole = read_meta(embed)
    data = _with(load_parts(embed, whole["facts"]), embed / "given", {})
    for folder in filter(None, added):
        meta = read_meta(folder)
        if meta["inputs"].get("01_embed") not in (None, digest(whole)):
            raise ArtifactError(f"{folder}: made from other embeddings than {embed}; run {meta['stage']} again")
        data = _with(data, folder, meta["facts"])
    return data


def _with(data: Data, folder: Path, facts: dict) -> Data:
    """The same data with what a stage made for every row: labels (of a null run), tokens as x, y and logits."""
    if (folder / "labels.npy").is_file():  # the labels that everything was trained with
        data = with_labels(data, open_array(folder / "labels.npy", 1))
    if (folder / "x.npy").is_file():
        data = with_tokens(data, open_array(folder / "x.npy", 2), facts["x"])
    if not (folder / "y.npy").is_file():
        return data
    y, logits = open_array(folder / "y.npy", 2), open_array(folder / "logits.npy")
    for name, value in (("y.npy", y), ("logits.npy", logits)):
        if len(value) != len(data.x):
            raise ArtifactError(f"{folder / name}: {len(value)} rows, the embeddings have {len(data.x)}")
    return replace(data, y=y, logits=logits)


def with_labels(data: Data, labels: np.ndarray) -> Data:
    """The same data with other plausibility labels (N,): 0, 1 or -1 for unknown."""
    if len(labels) != len(data.manifest):
        raise ArtifactError(f"{len(labels)} labels for {len(data.manifest)} rows")
    label = pd.Series(labels, dtype="Int64").mask(np.asarray(labels) < 0)
    return replace(data, manifest=data.manifest.assign(label=label.array))


def with_tokens(data: Data, x: np.ndarray, facts: dict) -> Data:
    """The same images with the tokens of a vision model as x; `embedding` stays what it was, the space of the vocabulary.

    Args: data with one row per image; x (N * T, D); facts of these rows: tokens_per_image, d_in, n_rows, layer ...
    Raises: ArtifactError when rows and images do not match.
    """
    tokens = int(facts["tokens_per_image"])
    if data.tokens > 1 or len(x) != len(data.manifest) * tokens:
        raise ArtifactError(f"x has {len(x)} rows for {len(data.manifest)} images with {tokens} tokens each")
    truth = None if data.truth is None else _each_token(data.truth, tokens)
    manifest, facts = _each_token(data.manifest, tokens), data.facts | facts
    return replace(data, x=x, manifest=manifest, truth=truth, final=data.embedding, facts=facts)


def load_parts(embed: Path, facts: dict) -> Data:
    """01's part of the view from its folder, also before the stage is finished."""
    folder = embed / "embeddings"
    x, files = open_array(folder / "x.npy", 2), pd.read_parquet(folder / "manifest.parquet")
    tokens = int(facts.get("tokens_per_image", 1))
    _check_rows(files, len(x), folder, tokens)
    images = files[files["status"] == "ok"].reset_index(drop=True)
    truth = None
    if facts.get("has_truth"):
        known = pd.read_parquet(embed / "truth.parquet").set_index("path")
        if missing := sorted(set(images["path"]) - set(known.index)):
            raise ArtifactError(f"{embed}/truth.parquet: no truth for {missing[0]} and {len(missing) - 1} more")
        truth = _each_token(known.loc[images["path"]].reset_index(), tokens)
    final = open_array(folder / "embedding.npy", 2) if (folder / "embedding.npy").is_file() else None
    if final is not None and len(final) != len(images):
        raise ArtifactError(f"{folder}/embedding.npy: {len(final)} rows for {len(images)} images")
    phrases = read_back(folder / "vocabulary.csv", ["kind"])
    d_out = (x if final is None else final).shape[1]
    vocabulary = open_array(folder / "vocabulary.npy", 2) if len(phrases) else np.zeros((0, d_out), np.float32)
    if vocabulary.shape != (len(phrases), d_out):
        raise ArtifactError(f"{folder}: vocabulary {vocabulary.shape}, expected {(len(phrases), d_out)}")
    # an absolute root replaces the artifact's folder
    root = embed / facts["image_root"] if facts.get("image_root") else None
    manifest = _each_token(images, tokens)
    return Data(x, manifest, vocabulary, phrases, facts, truth=truth, final=final, image_root=root, files=files)


def _each_token(frame: pd.DataFrame, tokens: int) -> pd.DataFrame:
    return frame if tokens == 1 else frame.loc[frame.index.repeat(tokens)].reset_index(drop=True)
