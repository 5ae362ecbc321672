"""The phrases that may name a feature: packaged, in a file, or the most frequent words of a language; and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.embed.datasets import extra
from mtlib.embed.given.tables import named, read_csv
from mtlib.embed.manifest import InputError
from mtlib.embed.store import save_array
from mtlib.run.stage import write_csv

PHRASES = ("phrase", "kind", "family", "cause")  # columns of a vocabulary
KINDS = ("error", "normal", "object", "nuisance", "word")
NO_PHRASES = pd.DataFrame(columns=list(PHRASES))
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image showing {}")
WORDS = "wordfreq"  # of the extra `data`: lists come with the package


def phrases(source: str, vocabulary: str = "", root: Path = Path()) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The phrases that may name a feature, with the templates to embed them in.

    Args:
        source:     "scenes" for rendered scenes, "images" for photographs; each has phrases of its own.
        vocabulary: other phrases: "wordfreq[:<count>]", the most frequent English words (20,000); a text file with a phrase
            per line; or a .csv with a column phrase, and kind, family, cause where they are known.
        root:       folder that relative paths start from.
    Returns: (frame with PHRASES, for the packaged photographs also category: the published kind of error; templates).
    Raises: InputError when the vocabulary cannot be read, is empty or repeats a phrase.
    """
    if vocabulary:
        return _given(vocabulary, root), TEMPLATES
    if source == "scenes":
        from mtlib.scenes.captions import vocabulary as of_scenes

        return of_scenes(), ("{}",)  # its encoder was trained on exactly these phrases
    table = pd.read_csv(Path(__file__).parent.with_name("phrases.csv"), keep_default_na=False, dtype=str)
    return table, TEMPLATES


def _given(vocabulary: str, root: Path) -> pd.DataFrame:
    name, _, count = vocabulary.partition(":")
    if name == WORDS:
        if count and not count.isdigit():
            raise InputError(f"vocabulary = {vocabulary}: {count!r} is no number of words, e.g. wordfreq:20000")
        table = pd.DataFrame({"phrase": words(int(count or 20_000))})
    else:
        path = root / vocabulary
        if not path.is_file():
            raise InputError(f"vocabulary = {vocabulary}: no such file (a list of phrases, or wordfreq:<count>)")
        if path.suffix.lower() == ".csv":
            table = named(read_csv(path, "phrase"), PHRASES, f"vocabulary = {vocabulary}")
        else:
            text = path.read_text(encoding="utf-8-sig")
            table = pd.DataFrame({"phrase": [line.strip() for line in text.splitlines() if line.strip()]}, dtype=str)
    if "phrase" not in table or not len(table):
        raise InputError(f"vocabulary = {vocabulary}: no phrases in it")
    if (again := table["phrase"].duplicated()).any():
        raise InputError(f"vocabulary = {vocabulary}: {table['phrase'][again].iloc[0]!r} stands there twice")
    for column in PHRASES[1:]:
        if column not in table:
            table[column] = "word" if column == "kind" else ""
    return table


def words(count: int) -> list[str]:
    """The `count` most frequent English words of at least three letters and without digits, most frequent first."""
    frequent = extra("wordfreq", "data").top_n_list("en", 4 * count + 1000)
    found = [word for word in frequent if len(word) > 2 and word.isalpha()][:count]
    if len(found) < count:
        raise InputError(f"vocabulary = {WORDS}:{count}: its list holds {len(found)} words")
    return found


def write_vocabulary(folder: Path, v: np.ndarray, table: pd.DataFrame) -> None:
    """Write folder/vocabulary.npy and vocabulary.csv. Raises: ValueError when they do not fit or a phrase repeats."""
    if len(v) != len(table):
        raise ValueError(f"vocabulary: {len(v)} embeddings for {len(table)} phrases")
    if table["phrase"].duplicated().any():
        raise ValueError(f"vocabulary: phrase {table['phrase'][table['phrase'].duplicated()].iloc[0]!r} appears twice")
    if unknown := set(table["kind"]) - set(KINDS):
        raise ValueError(f"vocabulary: kind {sorted(unknown)[0]!r} is not one of {KINDS}")
    save_array(folder / "vocabulary.npy", v)
    write_csv(folder / "vocabulary.csv", table)
