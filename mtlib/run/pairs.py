"""Notebook pairs: the .py (percent format) is the source, the .ipynb is made from it, without outputs.

    python -m mtlib.run.pairs [notebook.py ...]     make the .ipynb files that differ

Cell ids come from the cells' text, so that the same source gives the same file, byte for byte.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def paired(source: Path) -> str:
    """Text of the .ipynb that belongs to a .py notebook."""
    import jupytext
    import nbformat

    notebook = jupytext.read(source)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        count = seen[cell.source] = seen.get(cell.source, -1) + 1
        cell["id"] = hashlib.sha256(f"{count} {cell.cell_type} {cell.source}".encode()).hexdigest()[:8]
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def differences(source: Path) -> list[str]:
    """What differs between a .py notebook and the .ipynb beside it; empty when they are a pair.

    Cells are compared by jupytext; outputs and execution counts in the .ipynb are differences too.
    """
    import jupytext
    from jupytext.compare import NotebookDifference, compare_notebooks

    target = source.with_suffix(".ipynb")
    if not target.is_file():
        return [f"{target.name} is missing; make it with ./run_all.sh pair"]
    notebook = jupytext.read(target)
    found = []
    try:
        compare_notebooks(notebook, jupytext.read(source), fmt="py:percent")
    except NotebookDifference as e:
        found.append(f"{target.name}: {e}; edit the .py and run ./run_all.sh pair")
    for i, cell in enumerate(notebook.cells):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            found.append(f"{target.name}: cell {i + 1} holds outputs; run ./run_all.sh pair")
    return found


def make(source: Path) -> bool:
    """Write the .ipynb of a .py notebook if it differs. Returns whether it was written."""
    target, text = source.with_suffix(".ipynb"), paired(source)
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return False
    target.write_text(text, encoding="utf-8")
    return True


if __name__ == "__main__":
    for path in [Path(p) for p in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.py")):
        print(f"{path.with_suffix('.ipynb').name}: {'written' if make(path) else 'unchanged'}")
