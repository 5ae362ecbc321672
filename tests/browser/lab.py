"""JupyterLab and a headless Chromium for tests: started with an empty home and profile, stopped afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def missing() -> str:
    """Why the browser tests cannot run here, or ""."""
    for module in ("playwright", "jupyterlab"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; pip install -e '.[browser]'"
    return "" if chromium() else "no chromium found; install it, or set CHROMIUM to its path"


def chromium() -> str | None:
    """Path of a Chromium of this machine, if any."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def jupyterlab(folder: Path, home: Path) -> Iterator[str]:
    """JupyterLab serving `folder` on a free local port, with no token, driven by its command API.

    Yields: its address. Raises: RuntimeError with the end of its log when it is not up within a minute.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.token=", "--ServerApp.password=", "--ServerApp.port_retries=0"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--allow-root"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", f"--ServerApp.root_dir={folder}"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    env = kept | {"HOME": str(home), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    log = home / "jupyterlab.log"
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
    for _ in range(240):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{address}/api", timeout=5).read()
            return
        if server.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab is not up: {log.read_text(errors='replace')[-2000:]}")


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
    """What the page shows and what JupyterLab logged, for the report of a failed test."""
    try:
        state = shown.evaluate(
            "(() => { const w = window.jupyterapp?.shell.currentWidget; return [w?.title.label,"
            " w?.sessionContext?.kernelDisplayStatus, w?.content?.model?.cells.length, document.body.innerText]; })()"
        )
    except Exception as error:
        state = repr(error)
    log = home / "jupyterlab.log"
    logged = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    return f"page: {state}\nerrors: {shown.errors}\nJupyterLab: {logged}"


def run_all(shown, address: str, notebook: str) -> None:
    """Open a notebook (path from the served folder) and run all its cells."""
    shown.goto(f"{address}/lab/tree/{notebook}?reset")
    shown.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget")
    shown.wait_for_function(
        "(() => { const w = window.jupyterapp.shell.currentWidget;"
        " return w && w.sessionContext && w.sessionContext.isReady && w.content && w.content.model"
        " && w.content.model.cells.length > 1; })()"
    )
    shown.evaluate(
        "async () => { const app = window.jupyterapp; const w = app.shell.currentWidget;"
        " await w.sessionContext.ready; app.shell.collapseLeft && app.shell.collapseLeft();"
        " await app.commands.execute('runmenu:run-all'); }"
    )
