"""One notebook in one fresh kernel, and an honest verdict on how it ended.

papermill returns without an exception for `sys.exit(0)` in a cell, for an unknown parameter and for a missing
`parameters` tag, and its metadata call every cell "completed" after a killed kernel. So the verdict comes from
exceptions, from every cell's execution count and from the artifact: a stage that ends without `stage.finish()` failed.
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

from mtlib.run import needs

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
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


class StageFailed(RuntimeError):
    """A notebook did not end as it should; the message names the stage, the cell and the reason."""


def _kernel_env(root: Path) -> dict[str, str]:
    """What the kernel inherits besides; the caller's own OMP_NUM_THREADS is kept."""
    threads = os.environ.get("OMP_NUM_THREADS", DEFAULT_THREADS)
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(root)]
    return KERNEL_ENV | dict.fromkeys(THREADS, threads) | {"PYTHONPATH": os.pathsep.join([str(root), *rest])}


class Progress(logging.Handler):
    """Writes the kernel's output to a log file and shows where the stage is: a live line, or one line in 30 s."""

    def __init__(self, stage: str, log: Path, n_cells: int, echo):
        super().__init__(logging.INFO)
        self.stage, self.n_cells, self.echo, self.live = stage, n_cells, echo, sys.stdout.isatty()
        self.cell, self.last, self.start = 0, "", time.monotonic()
        self.file = open(log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed in __exit__
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        text = ANSI.sub("", record.getMessage())
        if match := re.match(r"Executing Cell (\d+)-", text):
            self.cell = int(match[1])
        if text.startswith(("Executing Cell", "Ending Cell")) and "-----" in text:
            text = text.replace("-", "")
        elif text.startswith(("Input Notebook:", "Output Notebook:", "Working directory:", "Executing notebook")):
            pass
        elif lines := [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]:
            self.last = lines[-1]
        self.file.write(text if text.endswith("\n") else text + "\n")
        self.file.flush()

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


@contextlib.contextmanager
def _stderr_to(log: Path):
    """Send file descriptor 2, which the kernel process inherits, to the log (crashes speak there)."""
    sys.stderr.flush()
    kept = os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.dup2(target, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(target)


def prepare(source: Path, provided: set[str] = frozenset(), values: dict | None = None):
    """A .py notebook (percent format) as a node to run, without the cells whose needs are not met.

    Args:
        provided: what earlier stages provide. values: parameters that differ from those of its own cell.
    Returns: (node, lines of the sections left out; `needs.leave_out`).
    """
    import jupytext

    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i + 1}"
    own = {name: value for _, cell in needs.parameter_cells(source) for name, value in needs.literals(cell).items()}
    return notebook, needs.leave_out(notebook, provided, own | (values or {}))


def run_notebook(
    stage: str, notebook, executed: Path, log: Path, parameters: dict, root: Path, cell_timeout: float, echo=print
) -> float:
    """Run a notebook with papermill in a fresh kernel.

    Args:
        stage:        what to call it in messages.
        notebook:     a node, from `prepare`.
        executed:     where the executed .ipynb goes, also after a failure.
        log:          where the kernel's output goes, line by line as it comes.
        parameters:   names and values injected after the `parameters` cell.
        root:         working directory of the kernel.
        cell_timeout: seconds that one cell may take.
    Returns: seconds it took.
    Raises: StageFailed naming the cell and the reason. Whether the stage finished its artifact is the caller's check.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    prepared = executed.with_suffix(".input.ipynb")
    prepared.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, prepared)
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    log.unlink(missing_ok=True)
    shown, reason = Progress(stage, log, len(notebook.cells) + 1, echo), ""
    with shown, _stderr_to(log), mock.patch.dict(os.environ, _kernel_env(root)):
        logger.addHandler(shown)
        try:
            papermill.execute_notebook(
                str(prepared),
                str(executed),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(root),
                log_output=True,
                progress_bar=False,
                execution_timeout=cell_timeout,
                start_timeout=300,
            )
        except CellTimeoutError:
            reason = f"it took longer than the limit of {cell_timeout:g} s a cell"
        except DeadKernelError:
            reason = "the kernel died (killed, out of memory, or crashed)"
        except papermill.exceptions.PapermillException as e:
            if failed := _first_fault(executed):
                raise StageFailed(_where(stage, executed, *failed)) from None
            raise StageFailed(f"{stage} failed: {_last_line(str(e))}") from None
        finally:
            logger.removeHandler(shown)
            prepared.unlink(missing_ok=True)
    failed = (shown.cell - 1, reason) if reason else _first_fault(executed)
    if failed:
        raise StageFailed(_where(stage, executed, *failed))
    return time.monotonic() - shown.start


def _cells(executed: Path) -> list:
    """Cells of the executed copy; empty when there is none yet."""
    import nbformat

    return nbformat.read(executed, as_version=4).cells if executed.is_file() else []


def _first_fault(executed: Path) -> tuple[int, str] | None:
    """The first cell that did not run to its end, and why: an error (also SystemExit), or no execution count."""
    for i, cell in enumerate(_cells(executed)):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                ends = "; a notebook must run to its last cell" if output.ename == "SystemExit" else ""
                return i, _last_line(ANSI.sub("", f"{output.ename}: {output.evalue}")) + ends
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            return i, "the cell never ran"
    return None


def _where(stage: str, executed: Path, index: int, reason: str) -> str:
    """`03_train failed in cell 7 (`coder = fit(...)`): reason`; cells are counted as in the notebook's source."""
    cells = _cells(executed)
    if not 0 <= index < len(cells):
        return f"{stage} failed: {reason}"
    lines = [line for line in cells[index].source.splitlines() if line.strip() and not line.startswith("#")]
    text = f" ({lines[0][:60]})" if lines else ""
    cell_id = cells[index].get("id", "")
    number = cell_id.removeprefix("cell-") if cell_id.startswith("cell-") else "with the parameters"
    return f"{stage} failed in cell {number}{text}: {reason}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"
