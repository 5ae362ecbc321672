"""What the house holds, before it was made thin and now: files, lines, arrows, sentences, tests, reports.

    ./run_all.sh prove house [--before COMMIT]

Counts what git tracks in two commits of this checkout, the work tree standing for the second, and prints one table.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "2d93e3b56f14885c9d2b7bf7ddd8b828d61cc79c"
OLD_ORDER = ("run", "scenes", "embed", "learn", "measure", "features", "explain", "report")
ORDER = ("plots", "run", "scenes", "embed", "coders", "learn", "measure", "truth", "features", "ask", "judge", "report")
MAX_FILES, MAX_LINES, WORDS = 12, 300, 6


def arrows(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports anywhere; names with dots, "__init__" left out."""
    files = {
        ".".join(p.relative_to(package.parent).with_suffix("").parts): p
        for p in package.rglob("*.py")
        if p.stem != "__init__"
    }
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & set(files)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & set(files)
        found[name].discard(name)
    return found


def reached(found: dict[str, set[str]], start: set[str]) -> set[str]:
    """Everything that is imported from `start` on, over any number of arrows."""
    seen, todo = set(), set(start)
    while todo:
        seen |= todo
        todo = set().union(*(found[m] for m in todo)) - seen
    return seen


def of_notebook(path: Path, found: dict[str, set[str]]) -> set[str]:
    """Modules of the package that a notebook reaches."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return reached(found, names & set(found))


def sentence_lines(package: Path) -> int:
    """Lines that hold a text of at least WORDS words which is no docstring, no error and no test of one."""
    count = 0
    for path in package.rglob("*.py"):
        tree, lines, left_out = ast.parse(path.read_text(encoding="utf-8")), set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                left_out |= set(range(node.lineno, node.end_lineno + 1))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) >= WORDS:
                lines |= set(range(node.lineno, node.end_lineno + 1))
        count += len(lines - left_out)
    return count


def measure(root: Path, order: tuple[str, ...]) -> dict[str, object]:
    """The column of one commit."""
    package = root / "mtlib"
    files = [p for p in package.rglob("*.py")]
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    per_folder = Counter(p.parent for p in files if p.stem != "__init__")
    found = arrows(package)
    place = {m: order.index(m.split(".")[1]) for m in found if m.split(".")[1] in order}
    up = [(a, b) for a in found for b in found[a] if place.get(b, 0) > place.get(a, 0)]
    notebooks = sorted((root / "notebooks").glob("[0-9]*.py"))
    kept = root / "reports"
    return {
        "files of mtlib": len([p for p in files if lines[p]]),
        "lines of mtlib, comments and docstrings counted": sum(lines.values()),
        f"files over {MAX_LINES} lines": sum(n > MAX_LINES for n in lines.values()),
        f"folders over {MAX_FILES} files": sum(n > MAX_FILES for n in per_folder.values()),
        "modules in a cycle": sum(m in reached(found, found[m]) for m in found),
        "arrows that run back up": len(up),
        f"lines with a text of {WORDS} words or more, errors and docstrings left out": sentence_lines(package),
        "modules reached by stage 04": len(of_notebook(root / "notebooks" / "04_evaluate.py", found)),
        "lines of the numbered notebooks": sum(len(p.read_text(encoding="utf-8").splitlines()) for p in notebooks),
        "code cells of the numbered notebooks over 10 lines": sum(map(long_cells, notebooks)),
        "texts printed by notebooks": sum(
            p.read_text(encoding="utf-8").count("print(") for p in (root / "notebooks").glob("*.py")
        ),
        "lines of tests": sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (root / "tests").rglob("*.py")),
        "MB of reports in git": round(sum(p.stat().st_size for p in tracked(root, kept)) / 1e6, 1),
    }


def long_cells(notebook: Path) -> int:
    """Code cells of more than ten lines, the parameters cell left out."""
    cells = notebook.read_text(encoding="utf-8").split("\n# %%")[1:]
    code = [c for c in cells if "[markdown]" not in c.split("\n")[0] and "parameters" not in c.split("\n")[0]]
    return sum(len([x for x in c.split("\n")[1:] if x.strip()]) > 10 for c in code)


def tracked(root: Path, folder: Path) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z", str(folder)], cwd=root, capture_output=True, text=True, check=True)
    return [root / name for name in names.stdout.split("\0") if name and (root / name).is_file()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove house", description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        old = Path(tmp) / "before"
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(old)], check=True)
        subprocess.run(["git", "checkout", "--quiet", args.before], cwd=old, check=True)
        table = pd.DataFrame({"before": measure(old, OLD_ORDER), "now": measure(ROOT, ORDER)}, dtype=object)
    print(table.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
