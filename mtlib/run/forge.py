"""What kernels inherit, and how they start with their libraries in memory: forked from one process that has imported them once (Linux).

A kernel's own commands (the fits of 03) and the report's pages start likewise. Every stage still has a process of its own.
Of this package nothing is imported before the fork, so that an edit counts at once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from pathlib import Path

LIBRARIES = ["torch", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.linear_model", "sklearn.model_selection"]
LIBRARIES += ["sklearn.neighbors", "matplotlib.pyplot", "seaborn", "pydantic", "safetensors.torch", "tqdm"]
LIBRARIES += ["matplotlib_inline.backend_inline"]
KERNEL = ["ipykernel.kernelapp"]
ENCODERS = ["open_clip"]  # and with it timm and torchvision: seconds more
MAX_MESSAGE = 1 << 20  # bytes
# Fixed, so that a run repeats to the last bit on one machine: sums are split by the number of threads.
KERNEL_ENV = {
    "PYTHONHASHSEED": "0",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "OPENBLAS_NUM_THREADS": "1",  # of numpy and scipy: two wait for each other in the small products of a linear probe
    # glibc keeps memory of up to 1 GiB that was freed: mapping the buffers of every step or batch afresh halves its speed
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
DEFAULT_THREADS = "2"
ADDRESS = "MTLIB_FORGE"  # in the environment of kernels: where they ask, too


def kernel_env(root: Path) -> dict[str, str]:
    """What the kernel inherits besides; the caller's own OMP_NUM_THREADS is kept."""
    threads = os.environ.get("OMP_NUM_THREADS", DEFAULT_THREADS)
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(root)]
    return KERNEL_ENV | dict.fromkeys(THREADS, threads) | {"PYTHONPATH": os.pathsep.join([str(root), *rest])}


def asking(address: str = "") -> list[str]:
    """What stands before `python -m ...` to have it run by a forge, by default that of this kernel; nothing without one."""
    address = address or os.environ.get(ADDRESS, "")
    return [sys.executable, "-S", "-E", __file__, "ask", address] if address else []


class Forge:
    """The process from which others are forked; it ends with the one that started it. `address`: the socket on which it is asked.

    Args: env: of the forge and of all kernels. libraries: that it imports; the first kernel waits for them.
    """

    def __init__(self, env: dict[str, str], libraries: list[str]):
        self._folder = tempfile.TemporaryDirectory(prefix="kernels-")  # of mode 700: nobody else may ask
        self.address = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen()
            command = [sys.executable, __file__, "forge", *libraries]
            given = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}
            fd = listener.fileno()
            self._process = subprocess.Popen([*command, str(fd)], env=env, pass_fds=[fd], **given)

    def close(self) -> None:
        """End it. Kernels end with whoever asked for them."""
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def manager(self) -> type:
        """A kernel manager for nbclient whose kernels are forked here."""
        from jupyter_client.manager import AsyncKernelManager

        before, folder = asking(self.address), Path(self._folder.name)

        class Forked(AsyncKernelManager):
            def __init__(self, **given):
                super().__init__(**given)
                # sockets in a folder that is this user's alone; a free port may be taken before the kernel binds it
                self.transport, self.connection_file = "ipc", str(folder / f"{uuid.uuid4().hex[:12]}.json")

            def format_kernel_cmd(self, extra_arguments=None):
                return [*before, *super().format_kernel_cmd(extra_arguments)]

        return Forked


@contextlib.contextmanager
def running(env: dict[str, str], libraries: list[str]):
    """A Forge, or None where processes cannot be forked safely (anything but Linux)."""
    if not sys.platform.startswith("linux"):
        yield None
        return
    one = Forge(env, libraries)
    try:
        yield one
    finally:
        one.close()


def _forge(libraries: list[str], fd: int) -> None:
    """Import, then fork a process for each that asks, until standard input ends: whoever started this is gone."""
    listener = socket.socket(fileno=fd)
    for name in libraries:
        with contextlib.suppress(ImportError):  # the kernel says so, if it needs it
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the ended leave nothing behind
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        asker, _ = listener.accept()
        message, fds, _, _ = socket.recv_fds(asker, MAX_MESSAGE, 2)
        if os.fork() == 0:
            listener.close()
            _become(asker, fds, **json.loads(message))
        for one in fds:
            os.close(one)
        asker.close()


def _become(asker: socket.socket, fds: list[int], command: list[str], env: dict[str, str], cwd: str) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd, place in zip([os.open(os.devnull, os.O_RDONLY), *fds], (0, 1, 2), strict=True):
        os.dup2(fd, place)
        os.close(fd)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)

    def end_with_asker() -> None:
        asker.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)

    asker.send(str(os.getpid()).encode())
    threading.Thread(target=end_with_asker, daemon=True).start()
    sys.path[0] = cwd  # as `python -m` has it, in place of this file's folder
    module, status = command[command.index("-m") + 1], 0
    sys.argv = command[command.index("-m") + 1 :]
    if module == "ipykernel_launcher":
        sys.argv.append(f"--IPKernelApp.parent_handle={os.getppid()}")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    asker.send(bytes([status & 255]))
    os._exit(status)


def _ask(address: str, command: list[str]) -> None:
    """Have a command run and live as long as it does, or, where no forge is left, become it. Ends with its parent."""
    parent, asked = os.getppid(), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    message = json.dumps({"command": command, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    try:
        asked.connect(address)
        socket.send_fds(asked, [message], [1, 2])
    except OSError:
        os.execv(command[0], command)
    forked = int(asked.recv(64) or 0)
    signal.signal(signal.SIGINT, lambda *_: forked and os.kill(forked, signal.SIGINT))
    while os.getppid() == parent and not select.select([asked], [], [], 1.0)[0]:
        pass
    sys.exit(int.from_bytes(asked.recv(1) or b"\1", "big"))  # killed, it says nothing


if __name__ == "__main__":
    role, *given = sys.argv[1:]
    if role == "forge":
        _forge(given[:-1], int(given[-1]))
    else:
        _ask(given[0], given[1:])
