"""Asking about 2,000 features x 20 images at 50 ms an answer, 4 at a time: how near to the limit, and is memory flat?

    ./run_all.sh prove throughput_judge [--features 2000] [--delay 0.05]

Two questions per feature, the second after the first, to a local server in a process of its own, over real HTTP; the
images are files of 64 x 64 pixels that go through the one image loader. The limit is concurrency / delay. Writes
proofs/results/throughput_judge.md.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from mtlib.ask.asker import Asker
from mtlib.ask.client import Client
from mtlib.ask.endpoint import Answer, Endpoint, Malformed, Picture, Question
from mtlib.ask.ledger import Ledger
from mtlib.embed.images import load_image
from mtlib.run.artifacts import sha256, write_text
from tests.ask.lmm_server import MODEL

ROOT = Path(__file__).resolve().parents[1]
N_FILES, N_IMAGES, SIDE, CONCURRENCY = 4000, 20, 64, 4
BARE_SECONDS = 8
SCHEMA = {"type": "object", "properties": {"digest": {"type": "string"}, "n": {"type": "integer"}}}
GOAL = 0.9


def draw(folder: Path) -> list[Picture]:
    """Image files of smooth random colours, each as a lazily loaded picture."""
    rng, pictures = np.random.default_rng(0), []
    for n in range(N_FILES):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        path = folder / f"{n}.jpg"
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
        pictures.append(Picture(sha256(path), lambda path=path: as_jpeg(path), (SIDE, SIDE)))
    return pictures


def as_jpeg(path: Path) -> bytes:
    """The canonical pixels of a file, as JPEG."""
    out = io.BytesIO()
    load_image(path)[0].save(out, "JPEG", quality=90)
    return out.getvalue()


def check(question: Question, text: str) -> dict:
    """Every answer names what was asked: the words and the count of pictures."""
    value = json.loads(text)
    if value["n"] != N_IMAGES or len(value["digest"]) != 16:
        raise Malformed("not the answer to this question")
    return value


def questions(pictures: list[Picture], n: int):
    """The first question of every feature; its images lie near each other, as the top images of features overlap."""
    rng = np.random.default_rng(1)
    for feature in range(n):
        chosen = (int(rng.integers(N_FILES)) + rng.choice(400, N_IMAGES, replace=False)) % N_FILES
        own = tuple(pictures[i] for i in chosen)
        yield Question(f"{feature}/commonality", "1", f"What do these {N_IMAGES} share? {feature}", own, SCHEMA)


def then(question: Question, answer: Answer) -> Question | None:
    """The second question, given the first answer."""
    feature, kind = question.id.split("/")
    if kind == "error" or answer.value is None:
        return None
    text = f"Given {answer.value['digest']}: do they share an error? {feature}"
    return Question(f"{feature}/error", "1", text, question.pictures, SCHEMA)


def resident_mb() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bare(base_url: str, pictures: list[Picture], seconds: float) -> float:
    """Requests per second of 4 threads that send one ready-made body over and over: what this machine allows now."""
    url = urlsplit(base_url)
    messages = Client(Endpoint(base_url=base_url, model=MODEL)).messages(
        Question("bare", "1", "Are you there?", tuple(pictures[:N_IMAGES]))
    )
    body, end = f'{{"model": "{MODEL}", "messages": {messages}}}'.encode(), time.perf_counter() + seconds

    def post(_) -> int:
        connection, n = http.client.HTTPConnection(url.hostname, url.port), 0
        while time.perf_counter() < end:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            assert connection.getresponse().read()
            n += 1
        return n

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return sum(pool.map(post, range(CONCURRENCY))) / seconds


def run(folder: Path, n: int, delay: float) -> dict:
    """Ask everything once. Returns the figures."""
    pictures = draw(folder)
    command = [sys.executable, "-m", "tests.ask.lmm_server", "--delay", str(delay)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        base_url = server.stdout.readline().strip()
        endpoint = Endpoint(base_url=base_url, model=MODEL, concurrency=CONCURRENCY)
        with Asker(endpoint, folder / "answers.sqlite", check) as asker:
            first = Question("first", "1", "Are you there?", (pictures[0],) * N_IMAGES)
            assert [a.status for a in asker.ask([first])] == ["answered"]  # the client loads its parts with it
            alone = [bare(base_url, pictures, BARE_SECONDS)]
            memory, marks = [], {2 * n * k // 10 for k in range(1, 11)}
            start, cpu, done = time.perf_counter(), time.process_time(), 0
            for answer in asker.ask(questions(pictures, n), then):
                assert answer.status == "answered", answer.reason
                done += 1
                if done in marks:
                    memory.append(resident_mb())
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            alone.append(bare(base_url, pictures, BARE_SECONDS))
        kept = folder / "answers.sqlite"
        assert done == 2 * n == asker.usage.calls - 1 == len(Ledger(kept).records) - 1
    finally:
        server.kill()
        server.wait()
    rate, limit = done / seconds, CONCURRENCY / delay
    figures = {"requests": done, "seconds": seconds, "rate": rate, "limit": limit, "share": rate / limit, "cpu": cpu}
    figures |= {"bare": sum(alone) / 2 / limit}
    return figures | {"memory": memory, "ledger_mb": kept.stat().st_size / 2**20, "load": os.getloadavg()[0]}


def summary(f: dict, n: int, delay: float) -> str:
    """The figures as Markdown."""
    memory = " ".join(f"{m:.0f}" for m in f["memory"])
    grown = f["memory"][-1] - f["memory"][1]
    return f"""# Throughput of the judge's client

{n} features x {N_IMAGES} images of {SIDE} px, two questions each: {f["requests"]} requests, {delay * 1000:.0f} ms per answer,
concurrency {CONCURRENCY}. Client and server share {os.cpu_count()} cores with other work (load average {f["load"]:.1f} at the end).

| | |
|---|---:|
| requests per second | {f["rate"]:.1f} |
| limit (concurrency / delay) | {f["limit"]:.1f} |
| share of the limit (goal {GOAL:.0%}) | {f["share"]:.1%} |
| the same of a bare client: 4 threads, one ready-made body, just before and after | {f["bare"]:.1%} |
| client's processor time per request | {1000 * f["cpu"] / f["requests"]:.1f} ms |
| memory of the client at each tenth of the way, MB | {memory} |
| growth from the second tenth to the end, MB | {grown:.1f} |
| answers kept in the ledger, MB | {f["ledger_mb"]:.1f} |

A request takes its 50 ms at the server and, in the same place, the sending of about 50 kB, the reading of the reply and
the syncing of the ledger to disk. Memory holds the ledger's answers and at most 32 MB of encoded images.
"""


def main() -> int:
    """Returns 0 when the goal is reached and memory is flat (the ledger's own size and 8 MB), else 1."""
    parser = argparse.ArgumentParser(prog="prove throughput_judge", description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.05)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="throughput-") as tmp:
        figures = run(Path(tmp), args.features, args.delay)
    text = summary(figures, args.features, args.delay)
    print(text)
    if (args.features, args.delay) == (2000, 0.05):
        write_text(ROOT / "proofs" / "results" / "throughput_judge.md", text)
    flat = figures["memory"][-1] - figures["memory"][1] < 3 * figures["ledger_mb"] + 8
    return 0 if figures["share"] >= GOAL and flat else 1


if __name__ == "__main__":
    sys.exit(main())
