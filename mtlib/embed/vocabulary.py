"""The phrases that may name a feature, and their text embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.encoders import TEMPLATES, Encoder
from mtlib.embed.store import save_array
from mtlib.run.artifacts import atomic

COLUMNS = ("phrase", "kind", "family", "cause")
KINDS = ("error", "normal", "object", "nuisance", "word")


def phrases(source: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Phrases for rendered scenes ("scenes") or photographs (anything else), with the templates to embed them in.

    Returns: (frame with COLUMNS, for photographs also category: the published kind of error; templates).
    """
    if source == "scenes":
        from mtlib.scenes.captions import vocabulary

        return vocabulary(), ("{}",)  # its encoder was trained on exactly these phrases
    table = pd.read_csv(Path(__file__).with_name("phrases.csv"), keep_default_na=False, dtype=str)
    return table, TEMPLATES


def embed_phrases(encoder: Encoder, table: pd.DataFrame, templates: tuple[str, ...]) -> np.ndarray:
    """(V, D) float32 unit-norm embeddings of the phrases, the mean over the templates."""
    return encoder.encode_texts(list(table["phrase"]), templates)


def write_vocabulary(folder: Path, v: np.ndarray, table: pd.DataFrame) -> None:
    """Write folder/vocabulary.npy and vocabulary.csv. Raises: ValueError when they do not fit or a phrase repeats."""
    if len(v) != len(table):
        raise ValueError(f"vocabulary: {len(v)} embeddings for {len(table)} phrases")
    if table["phrase"].duplicated().any():
        raise ValueError(f"vocabulary: phrase {table['phrase'][table['phrase'].duplicated()].iloc[0]!r} appears twice")
    if unknown := set(table["kind"]) - set(KINDS):
        raise ValueError(f"vocabulary: kind {sorted(unknown)[0]!r} is not one of {KINDS}")
    save_array(folder / "vocabulary.npy", v)
    with atomic(folder / "vocabulary.csv") as tmp:
        table.to_csv(tmp, index=False, lineterminator="\n")
