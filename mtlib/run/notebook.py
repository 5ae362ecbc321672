"""One notebook in one fresh kernel, cell by cell, and an honest verdict on how it ended.

A cell that ends in `sys.exit(0)` did not run to its end. Whether the stage finished its artifact is the pipeline's check.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from mtlib.run import needs
from mtlib.run.artifacts import StageFailed

# Fixed, so that a run repeats to the last bit on one machine: sums are split by the number of threads.
KERNEL_ENV = {
    "PYTHONHASHSEED": "0",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DEFAULT_THREADS = "2"


def _kernel_env(root: Path) -> dict[str, str]:
    """What the kernel inherits besides; the caller's own OMP_NUM_THREADS is kept."""
    threads = os.environ.get("OMP_NUM_THREADS", DEFAULT_THREADS)
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(root)]
    return KERNEL_ENV | dict.fromkeys(THREADS, threads) | {"PYTHONPATH": os.pathsep.join([str(root), *rest])}


class Progress:
    """Keeps what the kernel says in a log file and shows where the stage is: a live line, or one line in 30 s."""

    def __init__(self, stage: str, log: Path, n_cells: int, echo):
        self.stage, self.n_cells, self.echo, self.live = stage, n_cells, echo, sys.stdout.isatty()
        self.cell, self.last, self.start = 0, "", time.monotonic()
        log.unlink(missing_ok=True)
        self.file = open(log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed in __exit__
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def write(self, text: str) -> None:
        """Keep a text as it comes."""
        self.file.write(text if text.endswith("\n") else text + "\n")
        self.file.flush()
        self.last = next((line.strip() for line in text.splitlines()[::-1] if line.strip()), self.last)

    def _tick(self) -> None:
        while not self.stop.wait(1.0 if self.live else 30.0):
            seconds = time.monotonic() - self.start
            line = f"{self.stage:<14} {seconds:5.0f} s  cell {self.cell} of {self.n_cells}  {self.last}"
            print("\r" + line[:118].ljust(118), end="", flush=True) if self.live else self.echo(line[:118])

    def __enter__(self) -> Progress:
        self.thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self.stop.set()
        self.thread.join()
        if self.live:
            print("\r" + " " * 118 + "\r", end="", flush=True)
        self.file.close()


class _Client(NotebookClient):
    """A kernel whose words are handed on line by line, while a cell runs."""

    def process_message(self, msg: dict, cell, cell_index: int):
        content = msg["content"]
        if text := content.get("text") or content.get("data", {}).get("text/plain"):
            self.progress.write(text)
        return super().process_message(msg, cell, cell_index)


def prepare(source: Path, provided: set[str] = frozenset(), values: dict | None = None):
    """A .py notebook (percent format) as a node to run, without the cells whose needs are not met.

    Args:
        provided: what earlier stages provide. values: parameters that differ from those of its own cell.
    Returns: (node, lines of the sections left out; `needs.leave_out`).
    """
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i + 1}"
    own = {name: value for _, cell in needs.parameter_cells(source) for name, value in needs.literals(cell).items()}
    return notebook, needs.leave_out(notebook, provided, own | (values or {}))


def run_notebook(
    stage: str, notebook, executed: Path, log: Path, parameters: dict, root: Path, cell_timeout: float, echo=print
) -> float:
    """Run a notebook in a fresh kernel.

    Args:
        stage:        what to call it in messages.
        notebook:     a node, from `prepare`.
        executed:     where the executed .ipynb goes, also after a failure.
        log:          where the kernel's output goes, line by line as it comes.
        parameters:   names and values injected after the `parameters` cell.
        root:         working directory of the kernel.
        cell_timeout: seconds that one cell may take.
    Returns: seconds it took.
    Raises: StageFailed naming the cell and the reason.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    given = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    injected = nbformat.v4.new_code_cell(given, metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(tagged[0] + 1, injected)
    place = {"metadata": {"path": str(root)}}
    limits = {"timeout": math.ceil(cell_timeout), "startup_timeout": 300}
    client = _Client(notebook, kernel_name="python3", resources=place, **limits)
    cell, reason = injected, ""
    with (
        Progress(stage, log, len(notebook.cells), echo) as client.progress,
        contextlib.redirect_stderr(client.progress.file),
        mock.patch.dict(os.environ, _kernel_env(root)),
    ):
        try:
            with client.setup_kernel(stderr=client.progress.file):  # crashes speak there
                for i, cell in enumerate(notebook.cells):
                    client.progress.cell = i + 1
                    client.progress.file.write(f"---- cell {i + 1}\n")
                    client.execute_cell(cell, i)
                about = client.wait_for_reply(client.kc.kernel_info())["content"]
                notebook.metadata["language_info"] = about["language_info"]
                client.set_widgets_metadata()
        except CellExecutionError as e:
            ends = "; a notebook must run to its last cell" if e.ename == "SystemExit" else ""
            reason = (f"{e.ename}: {e.evalue}".strip().splitlines() or ["no message"])[-1][:500] + ends
        except CellTimeoutError:
            reason = f"it took longer than the limit of {cell_timeout:g} s a cell"
        except RuntimeError:  # nbclient's DeadKernelError, or what it raises of a kernel that never came up
            reason = "the kernel died (killed, out of memory, or crashed)"
        finally:
            nbformat.write(notebook, executed)
    if reason:
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
        text = f" ({lines[0][:60]})" if lines else ""
        number = "with the parameters" if cell is injected else cell["id"].removeprefix("cell-")  # as in its source
        raise StageFailed(f"{stage} failed in cell {number}{text}: {reason}")
    return time.monotonic() - client.progress.start
