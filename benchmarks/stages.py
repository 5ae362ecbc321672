"""Where the time of a run goes: for every stage its start, its imports, its work and what follows, in seconds.

    ./run_all.sh bench stages [run ...]            runs/demo by default; the last report of each must be of one uninterrupted run

start: until the first cell runs (the kernel; of the first stage also the libraries, imported once for all). import: cells that only
import. work: all other cells. after: the kernel's end, the files' hashes, the rendered notebook.
"""

from __future__ import annotations

import ast
import json
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd

from mtlib.report.text import markdown_table
from mtlib.run import artifacts
from mtlib.run.artifacts import META

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = (ast.Import, ast.ImportFrom)


def stage_times(log: Path, folder: Path) -> dict[str, float]:
    """Seconds of one stage. Args: log: its executed notebook. folder: its artifact."""
    notebook = json.loads(log.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if "shell.execute_reply" in c["metadata"].get("execution", {})]
    import_, work, first, last = 0.0, 0.0, None, None
    for cell in cells:
        start, end = (_at(cell["metadata"]["execution"][k]) for k in ("iopub.execute_input", "shell.execute_reply"))
        first, last = first or start, end
        body = ast.parse("".join(cell["source"])).body
        if body and all(isinstance(line, IMPORTS) for line in body):
            import_ += end - start
        else:
            work += end - start
    began = _at(notebook["metadata"]["papermill"]["start_time"])
    after = (folder / META).stat().st_mtime - last
    return {"start": first - began, "import": import_, "work": work, "after": after}


def _at(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def run_times(run_dir: Path) -> pd.DataFrame:
    """A line per stage in the order in which they ran, then the pages, and all of it."""
    current = artifacts.current(run_dir)
    lines = [{"stage": s} | stage_times(run_dir / "logs" / f"{s}.ipynb", run_dir / f) for s, f in current.items()]
    ends = {s: (run_dir / f / META).stat().st_mtime for s, f in current.items()}
    table = pd.DataFrame(lines).assign(end=list(ends.values())).sort_values("end", ignore_index=True)
    pages = {"stage": "pages", "work": (run_dir / "published.json").stat().st_mtime - table["end"].iloc[-1]}
    table = pd.concat([table.drop(columns="end"), pd.DataFrame([pages])], ignore_index=True).fillna(0.0)
    table["all"] = table[["start", "import", "work", "after"]].sum(axis=1)
    total = table.drop(columns="stage").sum()
    return pd.concat([table, pd.DataFrame([{"stage": "all"} | total.to_dict()])], ignore_index=True).round(1)


def main() -> int:
    for name in sys.argv[1:] or ["demo"]:
        print(f"{name}\n\n{markdown_table(run_times(ROOT / 'runs' / name))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
