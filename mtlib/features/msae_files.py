"""The files that MSAE's scripts write (arXiv 2502.20578), under their names and in their layouts.

{data}_{model}_repr_{N}_{S}.npy                 all codes of all rows, before the selection: plain float32, no header
{data}_{model}_output_{N}_{D}.npy               their reconstructions in units of x, likewise
{data}_{model}.json                             what is left when 16, 32, 64 ... codes are kept
Concept_Interpreter_{model}_{vocabulary}.npy    (V, S) float32 cosines of phrases with decoder rows, as numpy writes it

{model} is the checkpoint's file name less ".pt" (of a .pth an h stays, as published); of a coder that was trained here
<method>-s<seed>. Rows stand in their own order, where the authors' loader shuffles them. The arrays may be large: they go
into the stage's folder `arrays`, what goes into the report into `published`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtlib.embed.store import Data, unit_rows, write_rows
from mtlib.measure.codes import BATCH, Subject, keep_largest
from mtlib.measure.reconstruction import kept_sizes
from mtlib.measure.similarity import cknna
from mtlib.run.artifacts import atomic, write_text

CKNNA_ROWS = 10_000  # published: whole batches of so many rows only (about 6 GB in float64), fewer rows give NaN


def row_scores(x: np.ndarray, x_hat: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """MSAE's measures of each row of x, x_hat (B, D) and codes z (B, S), (B,) each: what they call them is kept.

    fvu: var(x - x_hat) / var(x) across a row's units, blind to a shift of the row; mae: sum |x - x_hat| / sum |x|; cs: cosine;
    l0: the share of codes that are 0.
    """
    x, x_hat = np.asarray(x, np.float64), np.asarray(x_hat, np.float64)
    found = {"fvu": (x - x_hat).var(1) / x.var(1), "mae": np.abs(x - x_hat).sum(1) / np.abs(x).sum(1)}
    return found | {"cs": (unit_rows(x) * unit_rows(x_hat)).sum(1), "l0": (np.asarray(z) == 0).mean(1)}


def _all_codes(coder, x: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """x (B, D) and all codes (B, S), batch by batch."""
    for start in range(0, len(x), BATCH):
        rows = torch.from_numpy(np.array(x[start : start + BATCH], np.float32)).to(coder.W_dec.device)
        with torch.no_grad():
            yield rows, coder.encode_all(rows)


def _decoded(coder, z: Tensor, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return coder.decode(z, -1, x).cpu().numpy()


def scores(coder, x: np.ndarray, cknna_rows: int = CKNNA_ROWS) -> dict[str, dict]:
    """What is left of x (N, D) when the 16, 32, 64 ... largest codes of each row are kept: "16" -> `row_scores` as [mean,
    standard deviation over rows], cknnas over whole batches of `cknna_rows`, and number_of_dead_neurons."""
    out = {}
    for k in kept_sizes(coder.n_latents):
        parts, alive, near, waiting = [], np.zeros(coder.n_latents, bool), [], []
        for rows, z in _all_codes(coder, x):
            z = keep_largest(z, k)
            parts.append(pd.DataFrame(row_scores(rows.cpu().numpy(), _decoded(coder, z, rows), z.cpu().numpy())))
            alive |= (z != 0).any(0).cpu().numpy()
            if len(x) >= cknna_rows:
                waiting.append((rows.cpu().numpy(), z.cpu().numpy()))
            while sum(len(a) for a, _ in waiting) >= cknna_rows:
                a, b = (np.concatenate(one) for one in zip(*waiting, strict=True))
                near.append(cknna(a[:cknna_rows], b[:cknna_rows]))
                waiting = [(a[cknna_rows:], b[cknna_rows:])]
        table = pd.concat(parts)
        found = {name: [float(table[name].mean()), float(table[name].std(ddof=0))] for name in table}
        found["cknnas"] = [float(np.mean(near)), float(np.std(near))] if near else [float("nan")] * 2
        out[str(k)] = found | {"number_of_dead_neurons": int((~alive).sum())}
    return out


def write_all(out: Path, data: Data, subjects: list[Subject], given: dict[str, str]) -> pd.DataFrame:
    """Write the files of every coder of x, over all rows of the run.

    Args: out: the stage's folder. given: parameters of notebook 01, whose embeddings and vocabulary name the files.
    Returns: frame of file (below `out`), what, rows, columns.
    """
    arrays, lines = out / "arrays", []
    named = given.get("embeddings") or given.get("images") or "scenes", given.get("vocabulary") or "vocabulary"
    source, words = (Path(name).name.replace(".npy", "") for name in named)
    x = np.asarray(data.x)
    for s in subjects:
        coder, (N, D), S = s.coder, x.shape, s.coder.n_latents
        file = coder.recorded.get("checkpoint", {}).get("file", f"{s.method}-s{s.seed}")
        stem = f"{source}_{file.replace('.pt', '')}"
        codes, outputs = arrays / f"{stem}_repr_{N}_{S}.npy", arrays / f"{stem}_output_{N}_{D}.npy"
        with atomic(codes) as a, atomic(outputs) as b, open(a, "wb") as of_codes, open(b, "wb") as of_outputs:
            for rows, z in _all_codes(coder, x):
                of_codes.write(np.ascontiguousarray(z.cpu().numpy(), "<f4").data)
                of_outputs.write(np.ascontiguousarray(_decoded(coder, z, rows), "<f4").data)
        lines += [(codes, "all codes", N, S), (outputs, "reconstructions from all codes", N, D)]
        of_k = out / "published" / f"{stem}.json"
        write_text(of_k, json.dumps(scores(coder, x), indent=4))  # NaN where there are too few rows, as published
        lines.append((of_k, "scores at every k", len(kept_sizes(S)), 6))
        if not len(data.vocabulary):
            continue
        name = file.replace(".pth", "").replace(".pt", "")
        names, directions = arrays / f"Concept_Interpreter_{name}_{words}.npy", unit_rows(coder.W_dec.detach().cpu()).T
        texts = (unit_rows(data.vocabulary[i : i + BATCH]) for i in range(0, len(data.vocabulary), BATCH))
        write_rows(names, (len(data.vocabulary), S), (some @ directions for some in texts))
        lines.append((names, "cosines of phrases with latents", len(data.vocabulary), S))
    return pd.DataFrame(
        [(p.relative_to(out).as_posix(), *m) for p, *m in lines], columns=["file", "what", "rows", "columns"]
    )
