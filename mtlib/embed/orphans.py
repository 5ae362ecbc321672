"""A worker process ends when the process that started it is gone, also when that was killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Call in a process that `multiprocessing` started: a thread waits for the parent's end and then ends this process."""
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=_end_after, args=(sentinel,), daemon=True).start()


def _end_after(sentinel) -> None:
    wait([sentinel])
    os._exit(1)
