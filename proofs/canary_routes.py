"""Routes of the canary proof that need no notebook (`./run_all.sh prove canary` runs them), and its servers' answers."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

from mtlib.ask.asker import Asker
from mtlib.ask.endpoint import Endpoint, Question
from mtlib.run.artifacts import current, read_meta
from mtlib.run.notebook import StageFailed, prepare, run_notebook
from tests.ask.asked import endpoint, parse, question
from tests.ask.hostile import CASES, serve, status
from tests.ask.lmm_server import MODEL, Ask, LmmServer, completion
from tests.ask.looking_server import KINDS

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"judge": "lmm", "model": MODEL, "max_features": 3, "score_features": 2, "score_images": 4, "max_usd": 0.0}
ANSWERS = {
    "error": {"has_error": False, "category": "none", "phrase": "", "description": "", "confidence": 0.5},
    "detection": {"matches": [1]},
    "intruder": {"intruder": 1},
    "commonality": {"phrase": "coloured shapes", "description": "", "confidence": 0.5},
}


def plain(ask: Ask) -> str:
    """A valid answer to any question of notebook 06, always the same."""
    kind = next((k for k, mark in KINDS.items() if mark in ask.text), "commonality")
    return json.dumps(ANSWERS[kind] | {"images_seen": len(ask.images)})


def refusing(ask: Ask):
    """A server that refuses the key and says which."""
    return status(401, f"Incorrect API key provided: {ask.key}. You sent: Bearer {ask.key}")


def echoing(ask: Ask):
    """The key in every place of a reply that a client may keep, in turn."""
    echo, number = ask.key, ask.number % 5
    if number == 0:
        return json.dumps(ANSWERS["commonality"] | {"phrase": f"the key {echo}"})
    if number == 1:
        return completion(plain(ask), model=echo)
    if number == 2:
        return completion(plain(ask), id=f"id-{echo}")
    if number == 3:
        return completion(plain(ask), finish_reason=echo)
    return status(500, f"Bearer {echo}", x_request_id=echo, retry_after=echo)


def hostile() -> None:
    """Every hostile case, with all logs on."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    for case in CASES:
        folder = Path(tempfile.mkdtemp())
        with serve(case) as server, Asker(endpoint(server), folder / "answers.sqlite", parse) as asker:
            for answer in asker.ask([question()]):
                print("route:", case.name, answer, asker.stopped, asker.usage)
    with LmmServer(echoing) as server:
        e = endpoint(server, give_up_after=0)
        with Asker(e, Path(tempfile.mkdtemp()) / "answers.sqlite", parse) as asker:
            for answer in asker.ask(question(n) for n in range(10)):
                print("route: echo", answer)


def slow(base_url: str) -> None:
    """Many questions; it is killed in the middle."""
    e = Endpoint(base_url=base_url, model=MODEL)
    with Asker(e, Path(tempfile.mkdtemp()) / "answers.sqlite", parse) as asker:
        for answer in asker.ask(question(n) for n in range(2000)):
            print(answer, flush=True)


def traceback() -> None:
    """Exceptions with the values of all variables, as IPython shows them: in the parser, a source, the ledger, a setting."""
    from IPython.core.ultratb import VerboseTB

    def broken_source():
        yield question(0)
        raise RuntimeError("the source of questions broke")

    def settings():
        return Endpoint(base_url=base_url, model=MODEL, concurrency=0)

    with LmmServer(plain) as server:
        base_url, folder = server.base_url, Path(tempfile.mkdtemp())
        (folder / "file").write_text("")
        asker = Asker(endpoint(server), folder / "answers.sqlite", parse)
        without_a_ledger = Asker(endpoint(server), folder / "file" / "answers.sqlite", parse)
        tries = [lambda: list(asker.ask(broken_source())), lambda: list(without_a_ledger.ask([question(1)]))]
        tries += [settings, lambda: asker.ledger.add({}), lambda: list(asker.ask([Question]))]
        for attempt in tries:
            try:
                attempt()
                raise AssertionError("this must fail")
            except (RuntimeError, OSError, ValueError, AttributeError):
                print(VerboseTB(theme_name="nocolor", include_vars=True).text(*sys.exc_info()))
        asker.close()
        without_a_ledger.close()


def notebook(base_url: str, *switches: str) -> None:
    """Notebook 06 in a kernel of its own, after the pipeline has run once; exit 1 when it fails."""
    given = SETTINGS | {"run_dir": "runs/canary", "base_url": base_url} | dict.fromkeys(switches, True)
    logs = ROOT / "runs" / "canary" / "logs"
    name = "-".join(["06", *switches, str(os.getpid())])
    try:
        run_dir = ROOT / given["run_dir"]
        metas = [read_meta(run_dir / folder) for folder in current(run_dir).values()]
        have = {need for meta in metas for need in meta["facts"].get("provides", [])}
        source, executed = ROOT / "notebooks" / "06_interpret.py", logs / f"{name}.ipynb"
        run_notebook("06_interpret", prepare(source, have, given)[0], executed, logs / f"{name}.log", given, ROOT, 600)
    except StageFailed as e:
        sys.exit(str(e))


if __name__ == "__main__":
    routes = {"hostile": hostile, "slow": slow, "traceback": traceback, "notebook": notebook}
    routes[sys.argv[1]](*sys.argv[2:])
