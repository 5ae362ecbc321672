"""A model that looks at the pictures, and is right 85% of the time, judges the whole demo over HTTP; 06 must find that out.

    ./run_all.sh prove looking_judge [--run demo] [--features 80] [--right 0.85] [--obeys 0.3]

Needs a finished run of the demo. Starts a local server that decodes the pictures it is sent and answers from the truth of the
scenes (tests/ask/looking_server.py), runs notebook 06 against it twice in fresh kernels, and checks: the accuracy of
its verdicts, measured against the truth, has the server's own inside its interval; so have its answers about single
held-out images; shuffled explanations score near chance; the second run asks nothing and gives the same tables.
Writes proofs/results/looking_judge.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mtlib.embed.store import open_run
from mtlib.learn.scores import wilson
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import current, read_meta, set_current, write_text
from mtlib.run.notebook import prepare, run_notebook
from tests.ask.lmm_server import MODEL, LmmServer
from tests.ask.looking_server import Looker

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("answers", "verdicts", "judges", "agreement", "scores", "score_outcomes", "flips", "usage")
NEAR_CHANCE = 0.06


def linked_run(run: Path, folder: Path) -> Path:
    """A run folder of its own that shows the stages of `run` before 06."""
    done = {s: name for s, name in current(run).items() if s < "06"}
    for stage, name in done.items():
        (folder / name).symlink_to(run / name, target_is_directory=True)
        set_current(folder, stage, name)
    return folder


def interpret(run: Path, base_url: str, out: Path, **parameters) -> tuple[dict[str, pd.DataFrame], float]:
    """Run notebook 06 in a fresh kernel. Returns its tables and the seconds it took."""
    values = {"run_dir": str(run), "judge": "lmm", "base_url": base_url, "model": MODEL} | parameters
    notebook = ROOT / "notebooks" / "06_interpret.py"
    have = {need for name in current(run).values() for need in read_meta(run / name)["facts"].get("provides", [])}
    seconds = run_notebook(
        "06_interpret", prepare(notebook, have, values)[0], out / "06.ipynb", out / "06.log", values, ROOT, 3600
    )
    folder = run / "06_interpret-interactive" / "tables"
    return {name: pd.read_csv(folder / f"06_{name}.csv") for name in TABLES}, seconds


def checks(tables: dict[str, pd.DataFrame], looker: Looker, same: bool, asked: tuple[int, int]) -> pd.DataFrame:
    """what, measured, low, high, expected, holds: one line per claim."""
    against = tables["agreement"].groupby(["judge", "reference"], sort=False).tail(1).set_index(["judge", "reference"])
    verdicts = against.loc[("lmm", "truth")]
    n, hits = int(verdicts["n"]), round(verdicts["n"] * verdicts["agreement"])
    lines = [("verdicts that agree with the truth", hits / n, *wilson(hits, n), looker.right)]
    for kind, what in (("error", "verdicts"), ("detection", "single held-out images"), ("intruder", "intruders")):
        n, hits = looker.decided[kind]
        lines.append((f"the server's own count: {what}", hits / n, *wilson(hits, n), looker.right))
    flips = tables["flips"].groupby("changed", sort=False)[["n", "n_flipped"]].sum()
    again = 2 * looker.right * (1 - looker.right)  # two independent answers differ by chance
    obeyed = again + looker.obeys * (1 - 2 * again)
    for (what, line), expected in zip(flips.iterrows(), (again, obeyed), strict=True):
        hits, n = int(line["n_flipped"]), int(line["n"])
        lines.append((f"verdicts turned by {what}", hits / n, *wilson(hits, n), expected))
    frame = pd.DataFrame(lines, columns=["what", "measured", "low", "high", "expected"])
    frame["holds"] = (frame["low"] <= frame["expected"]) & (frame["expected"] <= frame["high"])
    outcomes = tables["score_outcomes"].dropna(subset="accuracy").groupby("kind")["accuracy"].mean()
    near = abs(outcomes["shuffled"] - 0.5) <= NEAR_CHANCE
    more = [
        ("shuffled explanations, balanced accuracy", outcomes["shuffled"], 0.5, near),
        ("own explanations, more than the shuffled by", outcomes["detection"] - outcomes["shuffled"], None, None),
        ("requests of the second run", asked[1], 0, asked[1] == 0),
        ("tables of the second run that differ", 0 if same else 1, 0, same),
    ]
    rest = pd.DataFrame(more, columns=["what", "measured", "expected", "holds"])
    return pd.concat([frame, rest.astype({"expected": float})], ignore_index=True)


def report(frame: pd.DataFrame, tables: dict[str, pd.DataFrame], asked: tuple[int, int], seconds: list[float]) -> str:
    """The result as Markdown."""
    shown = frame.assign(holds=frame["holds"].map({True: "yes", False: "NO"}).fillna("–"))
    names = {"method": "method", "kind": "told by", "n_features": "features", "accuracy": "accuracy", "low": "low", "high": "high", "chance": "chance"}  # fmt: skip
    pairs = tables["agreement"].groupby(["judge", "reference"], sort=False).tail(1)
    return (
        "\n\n".join(
            [
                "# A model that looks at the pictures judges the demo",
                f"{asked[0]} requests over HTTP in {seconds[0]:.0f} s; a second run asked {asked[1]} and took {seconds[1]:.0f} s. "
                "Intervals are 95% (Wilson).",
                markdown_table(shown),
                "## Explanations on held-out images",
                "A feature fires on more than what its explanation says, and on less, so its own explanation need not reach the "
                "model's accuracy; another feature's must not rise above chance.",
                markdown_table(tables["scores"], names),
                "## Judges against each other, all methods",
                markdown_table(pairs),
                "## What became of every assessed feature",
                markdown_table(tables["answers"]),
            ]
        )
        + "\n"
    )


def main() -> int:
    """Returns 0 when every claim holds, else 1."""
    parser = argparse.ArgumentParser(prog="prove looking_judge", description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo")
    parser.add_argument("--right", type=float, default=0.85)
    parser.add_argument("--obeys", type=float, default=0.3)
    parser.add_argument("--features", type=int, default=80, help="features per method; 0: all")
    parser.add_argument("--quick", action="store_true", help="a few features only; writes no result")
    args = parser.parse_args()
    if not current(ROOT / "runs" / args.run):
        print(f"runs/{args.run}: not there; run ./run_all.sh {args.run} first", file=sys.stderr)
        return 2
    size = (
        {"max_features": 8, "score_features": 4, "flip_check": 4}
        if args.quick
        else {"max_features": args.features, "flip_check": 20}
    )
    with tempfile.TemporaryDirectory(prefix="looking-") as tmp:
        run = linked_run(ROOT / "runs" / args.run, Path(tmp))
        looker = Looker(open_run(run), args.right, args.obeys)
        with LmmServer(looker, keep=False) as server:
            tables, first = interpret(run, server.base_url, Path(tmp), **size)
            n, decided = server.n_asks, {k: list(v) for k, v in looker.decided.items()}
            again, second = interpret(run, server.base_url, Path(tmp), **size)
            asked = (n, server.n_asks - n)
    assert decided == looker.decided or asked[1]
    same = all(tables[name].equals(again[name]) for name in TABLES)
    frame = checks(tables, looker, same, asked)
    text = report(frame, tables, asked, [first, second])
    print(text)
    if not args.quick:
        write_text(ROOT / "proofs" / "results" / "looking_judge.md", text)
    return 0 if frame["holds"].dropna().all() else 1


if __name__ == "__main__":
    start = time.monotonic()
    code = main()
    print(f"{time.monotonic() - start:.0f} s")
    sys.exit(code)
