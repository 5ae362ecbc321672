"""A small finished 01_embed artifact with planted causes, for tests of the later stages.

Rows are family centre + cause direction + nuisance + noise, so that every cause is linearly readable from x.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mtlib.run.stage import Stage

FAMILIES = ("hand", "face", "glass", "blocks")


def table(n: int = 1200, d: int = 32, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Planted data: x (n, d) float32 and one manifest row per row of x (truth columns included)."""
    rng = np.random.default_rng(seed)
    family = rng.integers(0, len(FAMILIES), n)
    label = rng.integers(0, 2, n)
    nuisance = rng.integers(0, 3, n)
    centres = rng.normal(size=(len(FAMILIES), d))
    causes = rng.normal(size=(len(FAMILIES), d)) * 0.8
    nuisances = rng.normal(size=(3, d)) * 0.5
    x = centres[family] + label[:, None] * causes[family] + nuisances[nuisance] + rng.normal(size=(n, d)) * 0.35
    split = np.array(["train", "val", "test"])[np.searchsorted([0.6, 0.8], rng.random(n), side="right")]
    generator = np.where(rng.random(n) < 0.15, rng.choice(["gen_a", "gen_b"], n), "")
    split = np.where(generator != "", "unlabelled", split)
    name = np.array(FAMILIES)[family]
    manifest = pd.DataFrame(
        {
            "path": [
                f"{'human_error' if y else 'human_correct'}/{f}/{i:05d}.png"
                for i, (y, f) in enumerate(zip(label, name, strict=True))
            ],
            "row": pd.array(np.arange(n), dtype="Int64"),
            "status": "ok",
            "detail": "",
            "sha256": [f"{i:064x}" for i in range(n)],
            "duplicate_of": "",
            "label": pd.array(np.where(generator != "", -1, label), dtype="Int64"),
            "class_name": name,
            "group": [f"scene-{i}" for i in range(n)],
            "split": split,
            "generator": generator,
        }
    )
    manifest.loc[manifest["label"] == -1, "label"] = pd.NA
    truth = pd.DataFrame(
        {
            "path": manifest["path"],
            "scene": np.arange(n),
            "family": name,
            "cause": np.where(label == 1, np.char.add(name.astype(str), "_error"), ""),
            "label": label,
            "generator": generator,
            "background": np.array(["plain", "stripes", "tiles"])[nuisance],
        }
    )
    return x.astype(np.float32), manifest, truth


def vocabulary(d: int = 32, seed: int = 1) -> tuple[np.ndarray, pd.DataFrame]:
    """Phrases of errors, normal objects and nuisances with made-up text embeddings (V, d)."""
    rng = np.random.default_rng(seed)
    rows = [(f"a {f} with an error", "error", f, f"{f}_error") for f in FAMILIES]
    rows += [(f"a normal {f}", "normal", f, "") for f in FAMILIES]
    rows += [(f"a {b} background", "nuisance", "", "") for b in ("plain", "striped", "tiled")]
    frame = pd.DataFrame(rows, columns=["phrase", "kind", "family", "cause"])
    return rng.normal(size=(len(frame), d)).astype(np.float32), frame


def write_embed_stage(run_dir: Path, n: int = 1200, d: int = 32, seed: int = 0, images: bool = True) -> Path:
    """Write a finished 01_embed artifact into `run_dir` (a folder outside the repository is fine)."""
    x, manifest, truth = table(n, d, seed)
    v, phrases = vocabulary(d)
    stage = Stage("01_embed", str(run_dir))
    folder = stage.out / "embeddings"
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "vocabulary.npy", v)
    phrases.to_csv(folder / "vocabulary.csv", index=False)
    manifest.to_parquet(folder / "manifest.parquet", index=False)
    truth.to_parquet(stage.out / "truth.parquet", index=False)
    if images:
        rng = np.random.default_rng(seed)
        for path in manifest["path"]:
            target = stage.out / "images" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(target)
    stage.finish(
        n_rows=n,
        d_in=d,
        labels="plausibility",
        class_names=[],
        image_root="images" if images else "",
        encoder={"name": "synthetic", "pretrained": "", "fingerprint": "synthetic"},
        has_truth=True,
        source="scenes",
    )
    return stage.out
