"""Images with a known truth, features that fire exactly on a part of it, and everything that asking about them needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import Endpoint
from mtlib.ask.interview import Interview
from mtlib.ask.parse import parse
from mtlib.ask.shown_images import ShownImages
from mtlib.embed.store import Data
from mtlib.run.artifacts import sha256
from tests.ask.lmm_server import MODEL, LmmServer

FAMILIES, BACKGROUNDS = ("hand", "face", "glass", "table"), ("plain", "stripes", "tiles")


def planted_data(folder: Path, n: int = 240, side: int = 24, seed: int = 0) -> Data:
    """n images of noise in `folder`, every one different, with a family, a cause (half of them) and a background."""
    rng = np.random.default_rng(seed)
    family, background = rng.choice(FAMILIES, n), rng.choice(BACKGROUNDS, n)
    label = rng.integers(0, 2, n)
    paths = [f"{i:04d}.png" for i in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / path)
    manifest = pd.DataFrame({"path": paths, "split": np.where(np.arange(n) % 2, "val", "test"), "duplicate_of": ""})
    manifest["sha256"] = [sha256(folder / p) for p in paths]
    manifest["label"], manifest["class_name"] = pd.array(label, dtype="Int64"), family
    cause = np.where(label == 1, np.char.add(family.astype(str), "_error"), "")
    truth = pd.DataFrame({"path": paths, "family": family, "cause": cause, "background": background, "label": label})
    x, none = np.zeros((n, 2), np.float32), np.zeros((0, 2), np.float32)
    return Data(x, manifest, none, pd.DataFrame(), {"labels": "plausibility"}, truth=truth, image_root=folder)


def planted_features(data: Data, per_value: int = 3) -> tuple[dict, dict, np.ndarray]:
    """Features that fire on exactly one cause or one background, `per_value` of each, and one that fires on 3 images.

    Returns: {"m": features.parquet's columns}, {"m": top_images.parquet's}, fires (N, S) bool.
    """
    truth = data.truth
    wanted = [("cause", v) for v in sorted(set(truth["cause"]) - {""})] + [("background", v) for v in BACKGROUNDS]
    wanted = [w for w in wanted for _ in range(per_value)]
    fires = np.stack([(truth[c] == v).to_numpy() for c, v in wanted] + [np.arange(len(truth)) < 6], axis=1)
    test, val = data.rows("test"), data.rows("val")
    label = data.labels()
    lines, tops = [], []
    for f in range(fires.shape[1]):
        on = test[fires[test, f]]
        line = {"feature": f, "assessed": len(on) >= 3, "density": len(on) / len(test), "base_rate": 0.5}
        ratio = float(label[on].mean()) if len(on) else np.nan
        line |= {"error_ratio": ratio, "error_low": ratio, "is_error": f < len(wanted) and wanted[f][0] == "cause"}
        lines.append(line | {"top_cause": wanted[f][1] if f < len(wanted) else "", "top_cause_share": 1.0})
        rows = np.random.default_rng(f).permutation(val[fires[val, f]])[:20]
        tops.append(
            pd.DataFrame({"feature": f, "rank": range(len(rows)), "row": rows, "activation": 1.0, "split": "val"})
        )
    return {"m": pd.DataFrame(lines)}, {"m": pd.concat(tops, ignore_index=True)}, fires


def endpoint(server: LmmServer, **settings) -> Endpoint:
    """The local server with short waits."""
    quick = {"timeout_s": 10, "max_retries": 1, "backoff_s": 0.01, "retry_after_cap_s": 0.05}
    return Endpoint(base_url=server.base_url, model=MODEL, **quick | settings)


def interview(server: LmmServer, data: Data, ledger: Path, images_as: str = "separate", **settings) -> Interview:
    """Ready to ask; close its asker at the end."""
    return Interview(Asker(endpoint(server, **settings), ledger, parse), ShownImages(data, images_as))
