"""The page of a run to share: reports/<run>/index.html, one file, and the pictures that it shows in page/ beside it.

It works from a folder, without network or kernel. Nothing is counted here: features, codes and neighbours are 05's, verdicts
06's, causes 04's. Data go into the page as JSON, which the scripts beside this file show as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from mtlib.embed.images import ImageRefused, load_image
from mtlib.embed.store import ADDED, Data, load_data
from mtlib.report import browse
from mtlib.report.reader import Reader
from mtlib.run.artifacts import atomic, one_line, write_text

HERE, PICTURES = Path(__file__).parent, "page"
SCRIPTS = ("model.js", "parts.js", "views.js", "app.js")
TOP, FIFTHS, PER_FIFTH, SILENT = 20, 5, 4, 10  # images of a feature: strongest, over its activations, without it
NEAR, OF_IMAGE = 6, 12  # neighbours of a feature by either order; features of an image
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # of a heat map's cells, 0 to 63
MAX_CELLS = 1_000_000  # of the heat maps of a method
IMPORTANCE = (slice(0, 6), slice(6, TOP), slice(TOP, -SILENT), slice(-SILENT, None))  # of them, for a picture
MAX_FEATURES = 2000  # of a method, error features and the most active first
SIDE, MAX_BYTES, MAX_IMAGES = 160, 9_000_000, 6000  # a picture's longer side in px; all pictures
THREADS = 2  # that make them; they wait for Python little
COLUMNS = "feature density n_active_test mean_activation max_activation error_ratio error_low error_high q_bh assessed"
COLUMNS += " mono_score purity dominant_class copy_of causal_relevance causal_control_latents causal_control_random"
COLUMNS += " top_cause top_cause_share"
VERDICT = ["judge", "phrase", "verdict", "category", "confidence", "detail"]


def write_page(reader: Reader, report: Path) -> bool:
    """Write a run's page into its report; pictures that are there already stay. Returns: False without features to show."""
    methods = [one for m in reader.methods() if (one := _method(reader, m))]
    if not methods:
        (report / "index.html").unlink(missing_ok=True)  # of an earlier run of this name
        return False
    data = load_data(reader.folders["01_embed"], *map(reader.folders.get, ADDED))
    rows = data.rows("test")[:: data.tokens]  # (n,) first row of each image, in the order of the codes
    wanted = np.concatenate([m["shown"][:, part].ravel() for part in IMPORTANCE for m in methods])
    wanted = pd.unique(wanted[wanted >= 0])[:MAX_IMAGES]
    files = write_pictures(data, rows[wanted], report / PICTURES)
    wanted, place = wanted[: len(files)], np.full(len(rows) + 1, -1)  # the last for -1, no image
    place[wanted] = np.arange(len(wanted))
    for method in methods:
        method["shown"] = place[method["shown"]].tolist()
        method["heat"] = _heat(reader, method["name"], {int(row): i for i, row in enumerate(rows[wanted])})
        method["images"] = _features_of(method.pop("codes"), method.pop("table"), wanted)
    labels, known = data.labels(rows), data.manifest.assign(cause=None if data.truth is None else data.truth["cause"])
    about = [cells(known[column].iloc[rows[wanted]]) for column in ("class_name", "path", "cause")]
    content = {
        "run": reader.name,
        "note": reader.note,
        "remark": one_line(reader.params("07_results").get("remark", "")),
        "labelled": reader.facts("01_embed").get("labels") == "plausibility",
        "base_rate": float(labels[labels >= 0].mean().round(4)) if (labels >= 0).any() else None,
        "n_images": len(rows),
        "layout": [TOP, FIFTHS, PER_FIFTH],
        "notebooks": sorted(p.name for p in (report / "notebooks").glob("*.html")),
        "images": list(zip(files, labels[wanted].tolist(), *about, strict=True)),
        "methods": methods,
    }
    style, script = ("\n".join((HERE / n).read_text("utf-8") for n in names) for names in (("page.css",), SCRIPTS))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    as_json = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = Template((HERE / "index.html").read_text("utf-8"))
    write_text(report / "index.html", page.substitute(style=style, script=script, allowed=allowed, data=as_json))
    return True


def _method(reader: Reader, method: str) -> dict:
    """What the page knows of a method, with its codes and table and images by their place in the test split; {} without codes."""
    path = reader.find("05_features", f"features/{method}/codes.npz")
    if path is None:
        return {}
    codes, table = sparse.csc_array(sparse.load_npz(path)), browse.most_active(reader, method)
    errors, verdicts = browse.error_features(reader, method)["feature"].tolist(), reader.verdicts(method)
    n_latents, alive = len(table), table[table["n_active_test"] > 0]
    first = (~alive["feature"].isin(errors)).sort_values(kind="stable").index[:MAX_FEATURES]
    table = alive.loc[first]
    with np.load(path.with_name("histograms.npz"), allow_pickle=False) as saved:
        edges, counts = saved["edges"][table.index], saved["counts"][table.index]
    ends = [int(c.nonzero()[0].max(initial=-1)) + 1 for c in counts]  # of each histogram's last bar
    histograms = [[float(e[n]), c[:n].tolist()] for e, c, n in zip(edges, counts, ends, strict=True)]
    shown, activations = zip(*(choose(codes, feature) for feature in table.index), strict=True)
    return {
        "name": method,
        "n_latents": n_latents,
        "n_alive": len(alive),
        "columns": {c: cells(table[c]) for c in COLUMNS.split() if c in table},
        "errors": [int(f) for f in errors if f in table.index],
        "judges": browse.judges_of(reader, verdicts),
        "verdicts": _by_feature(verdicts, table.index, VERDICT),
        "near": _near(reader.features(method, "similar"), table.index),
        "histograms": histograms,
        "causes": _causes(reader, method),
        "shown": np.stack(shown),  # (features, images of each), -1: none
        "activations": [cells(pd.Series(a)) for a in activations],
        "codes": codes,
        "table": table,
    }


def _causes(reader: Reader, method: str) -> list[list]:
    """Of each known error the one feature of a method that stands for it: cause, its number, average precision, the probe's."""
    frame = reader.table("04_causes")
    if "ap_feature" not in frame:
        return []
    own = frame[frame["method"] == method].dropna(subset=["ap_feature"]).drop_duplicates("cause")  # of the first seed
    return list(zip(*(cells(own[c]) for c in ("cause", "ap_feature", "ap", "ap_probe")), strict=True))


def cells(column: pd.Series) -> list:
    """A column as JSON: numbers in four digits or null, text on one line."""
    if pd.api.types.is_bool_dtype(column) or (pd.api.types.is_integer_dtype(column) and not column.hasnans):
        return column.tolist()
    if pd.api.types.is_numeric_dtype(column):
        return [float(f"{v:.4g}") if np.isfinite(v) else None for v in column]
    return [one_line(v) for v in column.fillna("")]


def _by_feature(frame: pd.DataFrame, features: pd.Index, columns: list[str]) -> list[list]:
    """For each feature the lines of a frame that are its own, as lists of `columns`."""
    frame, lines = frame[frame["feature"].isin(features)], {f: [] for f in features}
    for feature, *line in zip(frame["feature"], *(cells(frame[c]) for c in columns), strict=True):
        lines[feature].append(line)
    return list(lines.values())


def _near(similar: pd.DataFrame, features: pd.Index) -> list[list]:
    """For each feature its neighbours by decoder and by images in common: number, cosine, share of images in common."""
    known, parts = similar[similar["neighbour"].isin(features)], []
    for column, by in (("cosine", "decoder"), ("jaccard", "together")):
        ranked = known[known["by"].isin([by, "both"])].sort_values(column, ascending=False, kind="stable")
        parts.append(ranked.groupby("feature").head(NEAR))
    kept = pd.concat(parts).drop_duplicates(["feature", "neighbour"])
    return _by_feature(kept, features, ["neighbour", "cosine", "jaccard"])


def choose(codes: sparse.csc_array, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a feature by their place in the test split, -1 where there are too few, and its activations on them: its
    strongest, some of each fifth of those on which it fires, and some without it by chance."""
    own, n_images = slice(*codes.indptr[feature : feature + 2]), codes.shape[0]
    fires = codes.indices[own][np.lexsort((codes.indices[own], -codes.data[own]))]
    out, n, at = np.full(TOP + FIFTHS * PER_FIFTH + SILENT, -1), len(fires), TOP + FIFTHS * PER_FIFTH
    out[: min(TOP, n)] = fires[:TOP]
    if n > TOP:
        out[TOP:at] = fires[((np.arange(FIFTHS * PER_FIFTH) + 0.5) * n / (FIFTHS * PER_FIFTH)).astype(int)]
    without = np.random.default_rng(feature).permutation(np.setdiff1d(np.arange(n_images), fires))[:SILENT]
    out[at : at + len(without)] = without
    activation = np.zeros(n_images, np.float32)
    activation[codes.indices[own]] = codes.data[own]
    return out, activation[out]


def _features_of(codes: sparse.csc_array, table: pd.DataFrame, images: np.ndarray) -> list[list]:
    """For each image its features on the page, those first that are nearest to their own maximum: number, activation, ..."""
    rows, lines = sparse.csr_array(codes[:, table.index]), []
    most = table["max_activation"].to_numpy()
    for i in images:
        own = slice(*rows.indptr[i : i + 2])
        column, value = rows.indices[own], rows.data[own]
        order = np.argsort(-value / most[column], kind="stable")[:OF_IMAGE]
        numbers = cells(pd.Series(value[order]))
        lines.append([n for pair in zip(table.index[column[order]].tolist(), numbers, strict=True) for n in pair])
    return lines


def _heat(reader: Reader, method: str, place: dict[int, int]) -> dict:
    """Heat maps of a method's features: side, square, and feature -> image -> a letter for each cell; {} without any.

    Args: place: row -> number of its image on the page.
    """
    if (path := reader.heat(method)) is None:
        return {}
    with np.load(path, allow_pickle=False) as saved:
        feature, row, level, square = (saved[name] for name in ("feature", "row", "level", "square"))
    maps, letters = {}, np.array(list(LETTERS))
    for f, r, cells in list(zip(feature.tolist(), row.tolist(), level, strict=True))[: MAX_CELLS // level[0].size]:
        if r in place:
            maps.setdefault(f, {})[place[r]] = "".join(letters[cells.ravel()])
    return {"side": level.shape[1:], "square": bool(square), "maps": maps}


def write_pictures(data: Data, rows: np.ndarray, folder: Path) -> list[str]:
    """Write a small picture of each row, named by the file's sha256, until MAX_BYTES; others in the folder go.

    Returns: their names, "" where there is none to show; shorter than rows where there was no room.
    """
    shown = rows if data.image_root is not None and data.pictures else []
    names, size, named = [], 0, [f"{sha256[-20:]}.webp" for sha256 in data.manifest["sha256"].iloc[shown]]
    with ThreadPoolExecutor(THREADS) as pool:
        places = {name: data.images(row) for name, row in zip(named, shown, strict=True)}
        written = {name: pool.submit(_write_picture, path, folder / name) for name, path in places.items()}
        for name in named:
            n_bytes = written[name].result()
            size += n_bytes
            if size > MAX_BYTES:
                break
            names.append(name if n_bytes else "")
        pool.shutdown(cancel_futures=True)
    for old in {p.name for p in folder.glob("*")} - set(names):
        (folder / old).unlink()
    return names or [""] * len(rows)


def _write_picture(path: Path, target: Path) -> int:
    """Write a small picture of an image, unless it is there. Returns: its bytes; 0 for an image that moved or changed since."""
    if not target.is_file():
        try:
            image, _ = load_image(path)
        except ImageRefused:
            return 0
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        with atomic(target) as tmp:
            image.save(tmp, "WEBP", quality=80, method=2)
    return target.stat().st_size
