"""What a notebook, or a section of one, needs; without it the pipeline leaves it out and says why.

A cell says so in its head: `# %% needs="truth"`, `# %% [markdown] needs="labels head"`; at the parameters cell it is said
of the whole notebook. A need is something that a finished stage provides (`stage.finish(provides=["truth"])`), or a
condition on the notebook's own parameters: `needs="score_features"` (it is not empty, zero or false) or
`needs="judge=lmm"` (it has that value). `needs="!embeddings"` is met where `embeddings` is not; of
`needs="images|label_images"` one is enough.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

HEAD = re.compile(r"^# %%(?P<head>.*)$", re.MULTILINE)
ATTRIBUTE = re.compile(r"""\b(?P<name>needs|settings|after|before)\s*=\s*["'](?P<value>[^"']*)["']""")
TAGGED = re.compile(r"""\btags\s*=\s*\[[^\]]*["']parameters["']""")
TITLE = re.compile(r"^#+ +(.+)$", re.MULTILINE)
WHY = {  # what is missing, in words
    "arrays": "embeddings made elsewhere",
    "attributes": "columns of the table of images, or nuisances of scenes",
    "autoencoders": "a trained autoencoder and two different test images to measure it on",
    "asked": "a multimodal model that was asked",
    "causes": "the features that stand for known causes, which the notebook truth finds",
    "classes": "classes to sort the images into",
    "classify": "classify = true, which this run has switched off",
    "coders": "a trained coder and two different test images to measure it on",
    "generators": "images of generators",
    "head": "a classifier, which needs labels or classes to learn",
    "images": "image files",
    "few": "fewer than 2,000 labelled images, and two different ones of each label or class",
    "judged": "a classifier that learned from labels plausible and implausible",
    "label_images": "a folder of new images",
    "labels": "labels plausible and implausible",
    "monoloss": "a method that was trained without and with MonoLoss",
    "pictures": "images that may be shown",
    "scenes": "scenes that were drawn here",
    "seeds": "a second seed of a method, or a second checkpoint",
    "targets": "labels or classes on train, validation and test images, one row per image",
    "text": "texts in the space of the embeddings",
    "tower": "an encoder with a text tower",
    "vision": "a vision model that was trained here",
    "zero_shot": "classes and texts to choose from",
    "trainable": "two different train images and a validation image",
    "trained": "a coder that was trained here",
    "truth": "the truth of every image, which only drawn scenes have",
}


def cells(notebook: Path) -> list[tuple[str, str]]:
    """(head, source) of every cell of a .py notebook. Read here: importing jupytext takes longer than an unchanged run."""
    parts = HEAD.split(notebook.read_text(encoding="utf-8"))
    return list(zip(parts[1::2], parts[2::2], strict=True))


def parameter_cells(notebook: Path) -> list[tuple[str, str]]:
    """Its cells tagged `parameters`; there should be one."""
    return [(head, source) for head, source in cells(notebook) if TAGGED.search(head)]


def attributes(notebook: Path) -> dict[str, str]:
    """What the head of the parameters cell says: needs, settings, after, before."""
    return {m["name"]: m["value"] for head, _ in parameter_cells(notebook) for m in ATTRIBUTE.finditer(head)}


def met(need: str, provided: set[str], values: dict) -> bool:
    """Whether one need, or one of several with "|" between them, is met by stages or by the notebook's own parameters."""
    if "|" in need:
        return any(met(one, provided, values) for one in need.split("|"))
    if need.startswith("!"):
        return not met(need[1:], provided, values)
    name, equals, value = need.partition("=")
    return str(values.get(name)) == value if equals else bool(values.get(need, need in provided))


def missing(needed: str, provided: set[str], values: dict) -> list[str]:
    """Those of some needs, with blanks between them, that are not met."""
    return [need for need in needed.split() if not met(need, provided, values)]


def answers(notebook: Path, provided: set[str], values: dict) -> dict[str, bool]:
    """Every need of a notebook and of its cells -> whether it is met: a part of the stage's hash."""
    named = {m["value"] for head, _ in cells(notebook) for m in ATTRIBUTE.finditer(head) if m["name"] == "needs"}
    return {need: met(need, provided, values) for need in sorted({n for text in named for n in text.split()})}


def leave_out(notebook, provided: set[str], values: dict) -> list[dict]:
    """Take the cells whose needs are not met out of a notebook node.

    Returns: a line for each section that is left out: title, needs (those not met) and reason.
    """
    kept, lines = [], []
    for cell in notebook.cells:
        lacking = missing(cell.metadata.get("needs", ""), provided, values)
        if "parameters" in cell.metadata.get("tags", []) or not lacking:
            kept.append(cell)
        elif title := TITLE.search(cell.source) if cell.cell_type == "markdown" else None:
            lines.append({"title": title[1], "needs": lacking, "reason": reason(lacking)})
    notebook.cells = kept
    return lines


def reason(lacking: list[str]) -> str:
    """One line that says what was missing."""

    def words(need: str) -> str:
        name = need.removeprefix("!")
        return "no " * need.startswith("!") + WHY.get(name, name)

    return "it needs " + " and ".join(" or ".join(map(words, need.split("|"))) for need in lacking)


def literals(source: str) -> dict:
    """Names and values of a cell of literals. Raises ValueError naming a line that is none."""
    values = {}
    for line in ast.parse(source).body:
        target = line.targets[0] if isinstance(line, ast.Assign) and len(line.targets) == 1 else None
        try:
            values[target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError) as e:
            raise ValueError(f"`{ast.unparse(line)}` in its parameters cell is not name = literal") from e
    return values
