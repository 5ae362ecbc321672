"""The package's layout: which folder may import which, no cycles, folders and files that can be read."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("plots", "run", "scenes", "embed", "coders", "learn", "measure", "truth", "features", "ask", "judge", "report")
MAX_FILES, MAX_LINES = 12, 300
FILES = sorted((ROOT / "mtlib").rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    known, found = {module(p) for p in FILES}, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name for name in names if name in known and name.count(".")}
    return found - {module(path)}


def place(name: str) -> str:
    return name.split(".")[1]


def test_folders_import_only_from_those_before_them():
    used = {(module(p), other) for p in FILES if module(p).count(".") for other in imported(p)}
    unknown = {place(m) for pair in used for m in pair} - set(ORDER)
    assert unknown == set()
    up = {f"{a} -> {b}" for a, b in used if ORDER.index(place(b)) > ORDER.index(place(a))}
    assert up == set()


def test_no_module_imports_itself_around_a_corner():
    arrows = {module(p): imported(p) for p in FILES}
    reached = {m: set(direct) for m, direct in arrows.items()}
    while any(reached[m] < reached[m].union(*(reached[n] for n in reached[m])) for m in reached):
        for m in reached:
            reached[m] |= set().union(*(reached[n] for n in reached[m]))
    assert {m for m in reached if m in reached[m]} == set()


def test_folders_and_files_can_be_read():
    per_folder = Counter(p.parent.relative_to(ROOT).as_posix() for p in FILES if p.name != "__init__.py")
    assert {f: n for f, n in per_folder.items() if n > MAX_FILES} == {}
    lines = {module(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {m: n for m, n in lines.items() if n > MAX_LINES} == {}
