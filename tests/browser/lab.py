"""The viewer as an app and a headless Chromium for tests: started with an empty home and profile, stopped afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mtlib.report import serve

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def missing(*more: str) -> str:
    """Why browser tests that need these modules too cannot run here, or ""."""
    for module in ("playwright", *more):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; pip install -e '.[browser]'"
    return "" if chromium() else "no chromium found; install it, or set CHROMIUM to its path"


def chromium() -> str | None:
    """Path of a Chromium of this machine, if any."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def viewer(run: Path, home: Path) -> Iterator[str]:
    """What `./run_all.sh viewer` starts, for a run anywhere, on a free local port.

    Yields: its address. Raises: RuntimeError with the end of its log when it is not up within minutes.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, *serve.VOILA, "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    env = kept | {"HOME": str(home), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1", serve.RUN: str(run)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    log = home / "viewer.log"
    with open(log, "wb") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, server, log)
        yield address
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
        if server.poll() is None:
            server.kill()


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(1200):
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", int(address.split(":")[-1])), 5),
        ):
            return
        if server.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"Voilà is not up: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def page(home: Path, width: int = 1600, height: int = 1400) -> Iterator:
    """A page of a fresh headless Chromium; messages that it prints as errors are kept in page.errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        env = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG")} | {"HOME": str(home)}
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, env=env)
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.set_default_timeout(90_000)
        shown.errors = []
        shown.on("pageerror", lambda e: shown.errors.append(str(e)))
        try:
            yield shown
        except Exception as error:
            error.add_note(_seen(shown, home))
            raise
        finally:
            browser.close()


def _seen(shown, home: Path) -> str:
    """What the page shows and what Voilà logged, for the report of a failed test."""
    log = home / "viewer.log"
    logged = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    return f"page: {shown.inner_text('body')[:2000]}\nerrors: {shown.errors}\nVoilà: {logged}"
