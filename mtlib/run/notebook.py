"""One notebook in one fresh kernel, by papermill, and an honest verdict on how it ended.

papermill returns without an exception for a cell that ends in `sys.exit(0)`; such a cell did not run to its end. Whether the
stage finished its artifact is the pipeline's check.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import jupytext
import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mtlib.run import needs
from mtlib.run.artifacts import StageFailed, visible
from mtlib.run.forge import ADDRESS, kernel_env

LOGGER = logging.getLogger("papermill")
LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False


class Progress(logging.Handler):
    """Keeps what papermill logs in a file and shows where the stage is: a live line, or one line in 30 s."""

    def __init__(self, stage: str, log: Path, n_cells: int):
        super().__init__(logging.INFO)
        self.stage, self.n_cells, self.live = stage, n_cells, sys.stdout.isatty()
        self.cell, self.last, self.start = 0, "", time.monotonic()
        log.unlink(missing_ok=True)  # "a": the kernel writes to it, too
        self.file = open(log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed in __exit__
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        text = visible(record.getMessage().replace("\r", "\n"))
        if match := re.match(r"(?:Executing|Ending) Cell (\d+)-", text):
            self.cell = int(match[1])
            text = text.replace("-", "")
        else:
            self.last = next((line.strip() for line in text.splitlines()[::-1] if line.strip()), self.last)
        self.file.write(text if text.endswith("\n") else text + "\n")
        self.file.flush()

    def _tick(self) -> None:
        while not self.stop.wait(1.0 if self.live else 30.0):
            seconds = time.monotonic() - self.start
            line = f"{self.stage:<14} {seconds:5.0f} s  cell {self.cell} of {self.n_cells}  {self.last}"
            print("\r" + line[:118].ljust(118) if self.live else line[:118], end="" if self.live else "\n", flush=True)

    def __enter__(self) -> Progress:
        LOGGER.addHandler(self)
        self.thread.start()
        return self

    def __exit__(self, *exc) -> None:
        LOGGER.removeHandler(self)
        self.stop.set()
        self.thread.join()
        if self.live:
            print("\r" + " " * 118 + "\r", end="", flush=True)
        self.file.close()


@contextlib.contextmanager
def _stderr_to(file):
    """Send file descriptor 2, which the kernel process inherits, to the log: crashes speak there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def prepare(source: Path, provided: set[str] = frozenset(), values: dict | None = None):
    """(a .py notebook as a node to run, without the cells whose needs are not met; the sections left out, `needs.leave_out`).

    Args: provided: what earlier stages provide. values: parameters that differ from those of its own cell.
    """
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i + 1}"
    own = {name: value for _, cell in needs.parameter_cells(source) for name, value in needs.literals(cell).items()}
    return notebook, needs.leave_out(notebook, provided, own | (values or {}))


def run_notebook(
    stage: str, notebook, executed: Path, log: Path, parameters: dict, root: Path, cell_timeout: int, forge=None
) -> float:
    """Run a notebook with papermill in a fresh kernel.

    Args:
        notebook:   a node, from `prepare`.
        executed:   where the executed .ipynb goes, also after a failure.
        log:        where the kernel's output goes, line by line as it comes.
        parameters: names and values injected after the `parameters` cell.
        root:       working directory of the kernel.
        forge:      a `forge.Forge` that its kernel comes from; None: an ordinary one.
    Returns: seconds it took.
    Raises: StageFailed naming the cell and the reason.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    target = str(executed).replace("{", "{{").replace("}", "}}")  # papermill fills parameters into it
    reason, at, progress = "", None, Progress(stage, log, len(notebook.cells) + 1)
    how = {"kernel_name": "python3", "cwd": str(root), "log_output": True, "progress_bar": False}
    how |= {"kernel_manager_class": forge.manager()} if forge else {}
    limits = {"execution_timeout": cell_timeout, "start_timeout": 300}
    env = kernel_env(root) | ({ADDRESS: forge.address} if forge else {})
    with progress, _stderr_to(progress.file), mock.patch.dict(os.environ, env):
        try:
            papermill.execute_notebook(notebook, target, parameters, **how, **limits)
        except PapermillExecutionError as e:
            reason = (f"{e.ename}: {e.evalue}".strip().splitlines() or ["no message"])[-1][:500]
        except CellTimeoutError:
            reason, at = f"it took longer than the limit of {cell_timeout} s a cell", progress.cell - 1
        except DeadKernelError:
            reason, at = "the kernel died (killed, out of memory, or crashed)", progress.cell - 1
    cells = nbformat.read(executed, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code" and c.source.strip()]
    errors = [(c, o) for c in code for o in c.outputs if o.output_type == "error"]
    never = [c for c in code if c.execution_count is None]
    if errors and not reason:
        reason = f"{errors[0][1].ename}: {errors[0][1].evalue}; a notebook must run to its last cell"
    if reason or never:
        place = _place(cells[at : at + 1] if at is not None else [cell for cell, _ in errors] or never)
        raise StageFailed(f"{stage} failed{place}: {reason or 'the cell never ran'}")
    return time.monotonic() - progress.start


def _place(cells: list) -> str:
    """` in cell 7 (coder = fit(...))` of the first of these cells, counted as in the notebook's source."""
    if not cells:
        return ""
    lines = [line for line in cells[0].source.splitlines() if line.strip() and not line.startswith("#")]
    named, number = cells[0].get("id", ""), "with the parameters"
    if named.startswith("cell-"):
        number = named.removeprefix("cell-")
    return f" in cell {number}" + (f" ({lines[0][:60]})" if lines else "")
