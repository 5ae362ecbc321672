"""One flipped bit in everything that a run reads back: refused by name, or of no effect; never a changed answer.

    ./run_all.sh prove flips [--run NAME] [--flips 300] [--whole 40] [--seed 0]

Copies a finished run and its report (NAME, or a smoke run of the demo that is made here) and flips random bits one at a time: in every kind
of file of its stages, in its records, and in what is published. Beside them: what a stage finds when it resumes (trained coders,
a checkpoint, shards of embeddings, drawn scenes) and a ledger of answers. Each is then read by the function that the run
reads it with. At last a repository of two small stages is run again as a whole after each flip.
Writes proofs/results/flips.md.

    caught      an error names the file and what to do; or it is said, and made again
    harmless    what is read is the same: unused bytes of the data base, or another spelling of the same number
    silent      another value was read (there may be none)
    traceback   any other error (there may be none)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.ask.ledger import Ledger, LedgerError
from mtlib.coders.config import SparseCoderConfig
from mtlib.coders.files import tensors_hash
from mtlib.embed.embedding import Shards
from mtlib.embed.sources import EmbedConfig, render_scenes
from mtlib.learn import loop
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit
from mtlib.report.text import markdown_table
from mtlib.run import artifacts, pipeline, publish
from mtlib.run.artifacts import ArtifactError
from proofs import conclude, made_with
from tests.run import small

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("caught", "harmless", "silent", "traceback")
MEND = re.compile(r"delete|again|move")
Subject = tuple[
    str, list[Path], Callable
]  # kind, its files, what reads them: a value, or nothing where it is made again


def flipped(file: Path, rng: random.Random) -> bytes:
    """Flip one random bit. Returns: what the file was."""
    before = file.read_bytes()
    after, bit = bytearray(before), rng.randrange(8 * len(before))
    after[bit // 8] ^= 1 << bit % 8
    file.write_bytes(after)
    return before


def outcome(read: Callable, file: Path, whole) -> str:
    """What became of a flip in `file`; `whole` is what is read without it."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            found = read()
        except (ArtifactError, LedgerError, OSError, ValueError) as e:
            known = type(e) in (ArtifactError, LedgerError, OSError, ValueError)  # no UnicodeDecodeError or the like
            return "caught" if known and file.name in str(e) and MEND.search(str(e)) else "traceback"
        except Exception:
            return "traceback"
    told = file.name in said.getvalue() and MEND.search(said.getvalue())
    if told and (not found or found == whole):
        return "caught"
    return "harmless" if found == whole else "silent"


def trial(files: list[Path], read: Callable, n: int, rng: random.Random) -> Counter:
    """n flips in files chosen at random, each taken back."""
    whole, counts = read(), Counter()
    for _ in range(n):
        file = rng.choice(files)
        before = flipped(file, rng)
        counts[outcome(read, file, whole)] += 1
        file.write_bytes(before)
    return counts


def of_a_run(run_dir: Path, report: Path) -> Iterator[Subject]:
    """The artifacts, the records and the report of a finished run."""
    folders = [run_dir / name for name in artifacts.current(run_dir).values()]
    for folder in folders:
        kinds: dict[str, list[Path]] = {}
        for file in (p for p in folder.rglob("*") if p.is_file() and p.stat().st_size):
            kind = file.name if file.name in (artifacts.META, "report.json") else file.suffix or file.name
            kinds.setdefault(kind, []).append(file)
        for kind, files in kinds.items():
            yield f"artifacts: {kind}", files, partial(artifacts.verify, folder)
    for name in ("stages.json", "left_out.json"):
        yield f"records: {name}", [run_dir / name], partial(artifacts.read_record, run_dir / name, artifacts.MEND)
    record = run_dir / publish.RECORD
    kinds = {"published: record": [record], "published: timings.csv": [report / "timings.csv"]}
    kinds |= {f"published: {k}": [p for p in (report / k).rglob("*") if p.is_file()] for k in publish.COPIED}
    kinds["published: pages"] = [*sorted(report.glob("*.md")), *report.glob("*.html"), *report.glob("page/*")]
    for kind, files in kinds.items():
        yield kind, files, partial(artifacts.verify, report, record, "run the profile again")


def of_a_stage(folder: Path) -> Iterator[Subject]:
    """What a stage that was interrupted finds in its folder."""
    rng = np.random.default_rng(0)
    x, coder = (
        rng.normal(size=(400, 12)).astype(np.float32),
        SparseCoderConfig.preset("topk", 12, 12, n_latents=32, l0=4),
    )
    how = TrainConfig(steps=30, batch=64, lr=1e-3, val_every=10)
    trained = fit(coder, x, x, np.arange(300), np.arange(300, 400), how, folder / "topk-s0")
    key = artifacts.read_meta(folder / "topk-s0")["fit"]
    for file in sorted((folder / "topk-s0").iterdir()):
        yield f"resumed: coder's {file.name}", [file], partial(loop.finished, folder / "topk-s0", key)
    history = pd.read_parquet(folder / "topk-s0" / loop.HISTORY).to_dict("records")
    parts = {"model": trained.state_dict(), "sums": {"n": trained.threshold.clone()}}
    loop.save(folder / "checkpoint", parts, {"key": key, "step": 20, "history": history, "best_val": {"fvu": 0.5}})

    def checkpoint():
        tensors, record = loop.load(folder / "checkpoint")
        return tensors_hash(tensors), artifacts.json_hash(record)

    yield "resumed: checkpoint", [folder / "checkpoint" / loop.NAME], checkpoint
    shards = Shards(folder / "shards", 60, 20, {"encoder": "any"})
    outcomes = pd.DataFrame({"status": "ok", "detail": "", "sha256": [f"{i:064x}" for i in range(20)]})
    for i in shards.indices:
        shards.write(i, [({"x": x[20 * i : 20 * i + 20]}, outcomes)])

    def joined():
        lines = shards.join(folder)
        return artifacts.sha256(folder / "x.npy"), lines.to_json()

    yield "resumed: shards", sorted((folder / "shards").glob("*.npz")), joined
    scenes = folder / "scenes"
    render_scenes(EmbedConfig(n_scenes=40, n_per_generator=4), scenes)
    drawn = [p for p in scenes.rglob("*") if p.is_file()]
    done = scenes / "shards" / "scenes.json"
    yield "resumed: drawn scenes", drawn, partial(artifacts.standing, scenes, "the scenes are drawn again", done)
    artifacts.write_record(folder / "skipped.json", {"skipped": [{"title": "Causes", "reason": "no truth"}]})
    skipped = folder / "skipped.json"
    yield "resumed: skipped.json", [skipped], partial(artifacts.read_record, skipped, "run the stage again")


def of_a_ledger(path: Path, n: int = 60) -> Subject:
    """A ledger of n answers, of which some are longer than a page."""
    book = Ledger(path)
    book.open()
    for i in range(n):
        text = f"the {i}th answer " * (1 + 40 * (i % 10))
        record = {"key": f"{i:064x}", "question": f"q/{i}", "status": "answered", "text": text, "usage": {"tokens": i}}
        book.add(record)
        book.log(record["key"], record["question"], "timeout")
    book.close()

    def replayed():
        with tempfile.TemporaryDirectory(dir=path.parent) as tmp:  # a ledger that is opened is written
            return Ledger(shutil.copy(path, tmp)).records

    return "ledger", [path], replayed


def of_whole_runs(root: Path, n: int, rng: random.Random) -> Counter:
    """Flips anywhere in the run and the report of a small repository, which is then run again."""
    places, counts = small.write(root / "small"), Counter()
    run_dir, report = places.root / "runs" / "demo", places.root / "reports" / "demo"

    def read():
        pipeline.run("demo", places=places)
        stages = [line.split(",")[0] for line in (report / "timings.csv").read_text(encoding="utf-8").splitlines()]
        own = {k: v for k, v in artifacts.hash_files(report).items() if k != "timings.csv"}
        return stages, own, {s: artifacts.digest(artifacts.verify(f)) for s, f in artifacts.open_run(run_dir).items()}

    with contextlib.redirect_stdout(io.StringIO()):
        whole = read()
    shutil.copytree(places.root, root / "before")
    for _ in range(n):
        files = [p for top in (run_dir, report) for p in top.rglob("*") if p.is_file() and p.stat().st_size]
        file = rng.choice([p for p in files if p.name != ".lock" and p.parent.name != "logs"])
        flipped(file, rng)
        counts[outcome(read, file, whole)] += 1
        for top in (run_dir, report):
            shutil.rmtree(top)
            shutil.copytree(root / "before" / top.relative_to(places.root), top)
    return counts


def main() -> int:
    """Returns 0 when no flip was silent or ended in a traceback, else 1."""
    parser = argparse.ArgumentParser(prog="prove flips", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", default="flips-smoke", help="a finished run (default: a smoke run of the demo, made here)"
    )
    parser.add_argument("--flips", type=int, default=300, help="of each kind")
    parser.add_argument("--whole", type=int, default=40, help="after which a small repository is run again")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, rng, total = time.monotonic(), random.Random(args.seed), {}
    if not (ROOT / "runs" / args.run / publish.RECORD).is_file():
        command = [sys.executable, "-m", "mtlib.run.pipeline", "demo", "--smoke", "-p", f"run={args.run}"]
        subprocess.run(command, cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="flips-") as tmp:
        run_dir, report = (Path(tmp) / top / args.run for top in ("runs", "reports"))
        for copy in (run_dir, report):
            shutil.copytree(ROOT / copy.relative_to(tmp), copy)
        (Path(tmp) / "part").mkdir()
        runs = list(of_a_run(run_dir, report))
        shares = Counter(kind for kind, files, _ in runs if files)  # a kind of several stages shares the flips
        for kind, files, read in (
            *runs,
            *of_a_stage(Path(tmp) / "part"),
            of_a_ledger(Path(tmp) / "answers.sqlite", 60),
        ):
            if files:
                n = 5 * args.flips if kind == "ledger" else -(-args.flips // shares.get(kind, 1))
                total[kind] = total.get(kind, Counter()) + trial(files, read, n, rng)
                print(f"{kind}: {dict(total[kind])}", flush=True)
        total["a whole run again"] = of_whole_runs(Path(tmp), args.whole, rng)
    lines = [{"kind": k, "flips": c.total()} | {o: c[o] for o in OUTCOMES} for k, c in sorted(total.items())]
    table = pd.DataFrame(lines)
    everything = pd.DataFrame([{"kind": "all"} | table.drop(columns="kind").sum().to_dict()])
    bad = int(table[["silent", "traceback"]].to_numpy().sum())
    text = f"# Flipped bits\n\n`./run_all.sh prove flips --flips {args.flips} --whole {args.whole}`, {time.monotonic() - start:.0f} s. {made_with()}.\n\n"
    text += markdown_table(pd.concat([table, everything]), max_rows=len(table) + 1) + "\n\n"
    text += "Caught: the error (or what is said before it is made again) names the file and what to do. Harmless: what is read is the same.\n\n"
    return conclude("flips", text, not bad)


if __name__ == "__main__":
    sys.exit(main())
