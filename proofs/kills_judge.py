"""SIGKILL at 20 random points of a judge's run: no answer is asked for twice, and the tables are the same.

    ./run_all.sh prove kills_judge [--kills 20]

A worker process asks both questions about planted features, and scores the explanations, against a local server that looks
at the images (tests/ask/looking_server.py). It is killed again and again at random moments and started anew on the
same ledger, at last left to end; its tables are compared with those of a run that nobody disturbed. Writes
proofs/results/kills_judge.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mtlib.ask.interview import plan_jobs
from mtlib.ask.ledger import Ledger
from mtlib.judge import lmm, scoring
from mtlib.judge.settings import JudgeConfig
from mtlib.run.artifacts import sha256, write_text
from tests.ask.lmm_server import Ask, LmmServer, digest
from tests.ask.looking_server import Looker
from tests.judge.planted import interview, planted_data, planted_features

ROOT = Path(__file__).resolve().parents[1]
CONCURRENCY, DELAY, N_IMAGES, N_FILES, PER_VALUE = 4, 0.03, 6, 400, 12


def work(base_url: str, folder: Path) -> None:
    """The worker: what notebook 06 asks, on the ledger of `folder`; tables at the end."""
    data = planted_data(folder / "images", N_FILES)
    features, tops, fires = planted_features(data, PER_VALUE)
    jobs, left = plan_jobs(features, tops, n_images=N_IMAGES)
    server = type("Server", (), {"base_url": base_url})
    talk = interview(server, data, folder / "answers.sqlite", concurrency=CONCURRENCY)
    judged = lmm.by_model(features, jobs, left, talk)
    config, rows = JudgeConfig(score_features=20, score_images=6), data.rows("test")
    own = [j for j in jobs if j.name in judged.explanations]
    trials = scoring.make_trials(own, judged.explanations, fires[rows][:, [j.feature for j in own]], rows, config)
    scores = scoring.score(trials, judged.explanations, talk)
    (folder / "tables").mkdir()
    tables = {"verdicts": judged.verdicts["m"], "answers": lmm.accounted(features, left, talk), "scores": scores}
    for name, table in (tables | {"summary": scoring.summary(scores, config)}).items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    talk.asker.close()


class Watch:
    """A server's answer function that remembers what it was asked, in order, as digests."""

    def __init__(self, answer):
        self.answer, self.seen = answer, {}  # number of the request -> digest

    def __call__(self, ask: Ask) -> str:
        self.seen[ask.number] = digest(ask.text, ask.images)
        return self.answer(ask)


def start(server: LmmServer, folder: Path) -> subprocess.Popen:
    """A worker process on a folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen([sys.executable, "-m", "proofs.kills_judge", "--work", server.base_url, folder], cwd=ROOT)


def kill_at(worker: subprocess.Popen, server: LmmServer, requests: int, later: float) -> bool:
    """SIGKILL the worker `later` seconds after so many further requests. Returns whether it was still alive."""
    target = server.n_asks + requests
    while server.n_asks < target and worker.poll() is None:
        time.sleep(0.002)
    time.sleep(later)
    alive = worker.poll() is None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    return alive


def answered(ledger: Path, watch: Watch) -> set[str]:
    """Digests of the questions whose answers are in a ledger; its records carry the number of their request."""
    records = Ledger(ledger).records.values()
    return {watch.seen[int(r["usage"]["request_id"].removeprefix("ask-"))] for r in records}


def killed_run(server: LmmServer, watch: Watch, folder: Path, kills: int, n: int) -> list[dict]:
    """Kill the worker so many times, let it end, and say for each kill what was kept and what was asked again."""
    rng, lines = random.Random(0), []
    for _ in range(kills):
        worker = start(server, folder)
        first = len(watch.seen)
        alive = kill_at(worker, server, rng.randint(1, 2 * n // (kills + 8)), rng.uniform(0, 2 * DELAY))
        time.sleep(5 * DELAY)  # requests that the server still has
        lines.append({"alive": alive, "first": first, "kept": answered(folder / "answers.sqlite", watch)})
    first = len(watch.seen)
    assert start(server, folder).wait() == 0
    ends = [line["first"] for line in lines[1:]] + [first]
    for line, end in zip(lines, ends, strict=True):
        before = Counter(watch.seen[i] for i in range(line["first"], end))
        after = {watch.seen[i] for i in range(end, len(watch.seen))}
        line["requests"], line["repeated"] = sum(before.values()), len(set(before) & after)
        line["lost"] = len(line["kept"] & after)
    return lines


def summary(lines: list[dict], n: int, total: int, same: dict[str, bool]) -> str:
    """The result as Markdown."""
    head = f"""# A judge's run, killed {len(lines)} times

An undisturbed run asks {n} questions. SIGKILL at random moments while {CONCURRENCY} requests are in flight, {DELAY * 1000:.0f} ms each:
{total} requests in all, so {total - n} were repeated.

| kill | requests since the one before | answers in the ledger | of them asked again | requests repeated later |
|---:|---:|---:|---:|---:|
"""
    rows = [
        f"| {i} | {x['requests']} | {len(x['kept'])} | {x['lost']} | {x['repeated']} |" for i, x in enumerate(lines, 1)
    ]
    tables = ", ".join(f"{name} {'identical' if ok else 'DIFFERS'}" for name, ok in same.items())
    return head + "\n".join(rows) + f"\n\nTables of the killed run beside those of the undisturbed one: {tables}.\n"


def main() -> int:
    """Returns 0 when no recorded answer was asked again, at most `concurrency` were per kill, and all tables agree."""
    parser = argparse.ArgumentParser(prog="prove kills_judge", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--work", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], Path(args.work[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="kills-") as tmp:
        whole, killed = Path(tmp) / "whole", Path(tmp) / "killed"
        (Path(tmp) / "known").mkdir()
        watch = Watch(Looker(planted_data(Path(tmp) / "known", N_FILES), bar=0.8))
        with LmmServer(watch, DELAY, keep=False) as server:
            assert start(server, whole).wait() == 0
            n = server.n_asks
        with LmmServer(watch, DELAY, keep=False) as server:
            watch.seen = {}
            lines = killed_run(server, watch, killed, args.kills, n)
            total = server.n_asks
        names = sorted(p.name for p in (whole / "tables").iterdir())
        same = {f: sha256(whole / "tables" / f) == sha256(killed / "tables" / f) for f in names}
    text = summary(lines, n, total, same)
    print(text)
    if args.kills == 20:
        write_text(ROOT / "proofs" / "results" / "kills_judge.md", text)
    fine = all(x["alive"] and x["lost"] == 0 and x["repeated"] <= CONCURRENCY for x in lines)
    return 0 if fine and all(same.values()) and len(same) == 4 else 1


if __name__ == "__main__":
    sys.exit(main())
