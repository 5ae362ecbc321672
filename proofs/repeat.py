"""Two runs from two fresh clones of this checkout give byte-identical tables.

    ./run_all.sh prove repeat [--profile demo] [--smoke]

Clones the committed state twice into temporary folders, runs the profile in each with this environment, compares every
file of reports/<run>/tables and collages and writes proofs/results/repeat.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mtlib.run.artifacts import sha256, write_text
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("tables", "figures", "collages")


def clone(folder: Path) -> None:
    """The committed state of the checkout, in `folder`."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)


def run(folder: Path, arguments: list[str]) -> float:
    """Run the profile in a clone. Returns seconds; a failure ends the proof."""
    env = os.environ | {"PYTHONPATH": str(folder)}
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "mtlib.run.pipeline", *arguments], cwd=folder, env=env, check=True)
    return time.monotonic() - start


def compare(first: Path, second: Path) -> list[tuple[str, str]]:
    """(file, "identical" | "differs" | "only in one") for every published table, figure and collage."""
    names = sorted({p.relative_to(r).as_posix() for r in (first, second) for k in KINDS for p in (r / k).rglob("*.*")})
    verdicts = []
    for name in names:
        a, b = first / name, second / name
        if not (a.is_file() and b.is_file()):
            verdicts.append((name, "only in one"))
        else:
            verdicts.append((name, "identical" if sha256(a) == sha256(b) else "differs"))
    return verdicts


def summary(verdicts: list[tuple[str, str]], command: str, seconds: list[float]) -> str:
    """The result as Markdown: a count per kind, then every file that is not identical."""
    lines = [
        "# Two runs from two fresh clones",
        "",
        f"`{command}`, run twice: {', '.join(f'{s:.0f} s' for s in seconds)}.",
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "the default number of")
    lines += [
        f"{platform.machine()}, {threads} threads, {made_with()}.",
        "",
        "| kind | files | identical |",
        "|---|---:|---:|",
    ]
    for kind in KINDS:
        own = [verdict for name, verdict in verdicts if name.startswith(kind + "/")]
        lines.append(f"| {kind} | {len(own)} | {own.count('identical')} |")
    bad = [f"- {name}: {verdict}" for name, verdict in verdicts if verdict != "identical"]
    lines += ["", *(bad or ["Every file is byte-identical."])]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Returns 0 when every table is byte-identical, else 1."""
    parser = argparse.ArgumentParser(prog="prove repeat", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    arguments = [args.profile] + ["--smoke"] * args.smoke
    name = args.profile + "-smoke" * args.smoke
    with tempfile.TemporaryDirectory(prefix="repeat-") as tmp:
        clones = [Path(tmp) / "first", Path(tmp) / "second"]
        for folder in clones:  # both before any run: a commit in between is no difference of runs
            clone(folder)
        seconds = [run(folder, arguments) for folder in clones]
        verdicts = compare(*(folder / "reports" / name for folder in clones))
    text = summary(verdicts, f"./run_all.sh {' '.join(arguments)}", seconds)
    print(text)
    if not args.smoke:
        write_text(ROOT / "proofs" / "results" / "repeat.md", text)
    tables = [verdict for name, verdict in verdicts if name.startswith("tables/")]
    return 0 if tables and set(tables) == {"identical"} else 1


if __name__ == "__main__":
    sys.exit(main())
