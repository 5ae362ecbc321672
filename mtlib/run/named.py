"""Scripts that are called by name: `./run_all.sh prove repeat` runs proofs/repeat.py.

python -m mtlib.run.named proofs [name [argument ...]]
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def available(folder: Path) -> dict[str, str]:
    """Name -> first line of the docstring, of every script of a folder (not those that start with _)."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.splitlines()[0] if doc else ""
    return found


def main(argv: list[str]) -> int:
    """Run the script, or list what there is: exit 0 when no name is given, 2 when it is unknown."""
    folder, *rest = argv
    scripts = available(ROOT / folder)
    if rest and rest[0] in scripts:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", f"{folder}.{rest[0]}", *rest[1:]])
    out = sys.stderr if rest else sys.stdout
    if rest:
        print(f"error: {folder} has no {rest[0]}; there are:", file=out)
    for name, line in scripts.items():
        print(f"  {name:<16} {line}", file=out)
    return 2 if rest else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
