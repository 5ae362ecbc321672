"""Every table of five runs is the same, byte for byte, as that of the commit before the package was made thin.

    ./run_all.sh prove same_tables [--only NAME ...] [--data FOLDER] [--base FOLDER]

The earlier commit is checked out below runs/ and run there once; then the same commands run here. What may differ is
listed in proofs/same_tables.csv: run, table, columns (or "(new)", "(gone)", "(any)"), reason. Anything else
that differs makes the proof fail.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "2d93e3b56f14885c9d2b7bf7ddd8b828d61cc79c"
LISTED = Path(__file__).with_suffix(".csv")
DATA = ROOT.parent / "shared" / "data"


def commands(data: Path) -> dict[str, list[str]]:
    """Name -> the arguments of run_all.sh."""
    arrays = data / "things_clip_vitb32"
    given = {
        "embeddings": "image_embeddings.npy",
        "vocabulary": "text_embeddings.npy",
        "vocabulary_names": "text_vocabulary.txt",
    }
    things = [word for key, name in given.items() for word in ("-p", f"{key}={arrays / name}")]
    return {
        "msae-smoke": ["msae", "--smoke"],
        "monoloss-smoke": ["monoloss", "--smoke"],
        "alexnet-smoke": ["alexnet", "--smoke"],
        "things_arrays": ["things", "--smoke", "-p", "run=things_arrays", *things],
        "demo": ["demo"],
    }


def run(root: Path, arguments: list[str]) -> None:
    """One run of a checkout, by its own run_all.sh. Raises SystemExit when it fails."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(["./run_all.sh", *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{root.name}: ./run_all.sh {' '.join(arguments)} ended with {done.returncode}\n{done.stderr[-2000:]}")


def earlier(base: Path) -> Path:
    """A checkout of the earlier commit, made when it is not there."""
    if not base.is_dir():
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(base)], check=True)
        subprocess.run(["git", "checkout", "--quiet", BEFORE], cwd=base, check=True)
    return base


def differences(old: Path, now: Path, listed: pd.DataFrame) -> list[dict]:
    """A line for every table of either folder: name, state ("equal", "listed" or "DIFFERS") and what differs."""
    lines = []
    for name in sorted({p.name for folder in (old, now) for p in folder.glob("*.csv")}):
        texts = [(f / name).read_bytes() if (f / name).is_file() else None for f in (old, now)]
        if texts[0] == texts[1]:
            lines.append({"table": name, "state": "equal", "what": ""})
            continue
        gone, made = texts[1] is None, texts[0] is None
        what = {"(gone)"} if gone else {"(new)"} if made else _columns(old / name, now / name)
        allowed = {c for text in listed[[fnmatch(name, p) for p in listed["table"]]]["columns"] for c in text.split()}
        fine = what <= allowed or "(any)" in allowed
        lines.append({"table": name, "state": "listed" if fine else "DIFFERS", "what": " ".join(sorted(what))})
    return lines


def _columns(old: Path, new: Path) -> set[str]:
    """The columns in which two tables differ; "(rows)" where their numbers of rows do."""
    a, b = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (old, new))
    if len(a) != len(b):
        return {"(rows)"}
    found = set(a) ^ set(b)
    found |= {c for c in set(a) & set(b) if not (a[c] == b[c]).all()}
    return found or {"(order)"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="of the runs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds things_clip_vitb32/")
    parser.add_argument("--base", type=Path, default=ROOT / "runs" / "same_tables" / "before")
    args = parser.parse_args()
    base, listed, failed = earlier(args.base), pd.read_csv(LISTED, dtype=str, keep_default_na=False), 0
    for name, arguments in commands(args.data).items():
        if args.only and name not in args.only:
            continue
        if name == "things_arrays" and not (args.data / "things_clip_vitb32").is_dir():
            print(f"{name}: left out, there are no arrays at {args.data}")
            continue
        for root in (base, ROOT):
            if root == ROOT or not (root / "reports" / name / "timings.csv").is_file():
                run(root, arguments)
        own = listed[[fnmatch(name, pattern) for pattern in listed["run"]]]
        lines = pd.DataFrame(differences(*(r / "reports" / name / "tables" for r in (base, ROOT)), own))
        counts = lines["state"].value_counts()
        print(f"{name}: {len(lines)} tables; " + ", ".join(f"{n} {state}" for state, n in counts.items()), flush=True)
        for line in lines[lines["state"] != "equal"].itertuples():
            print(f"  {line.state:8} {line.table:32} {line.what}", flush=True)
        failed += int((lines["state"] == "DIFFERS").sum())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
