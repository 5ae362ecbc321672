"""Speed side by side with other libraries, in one process: `./run_all.sh bench speed`."""

from __future__ import annotations

import os
import sys


def as_in_training() -> None:
    """Start this process again with one thread and what kernels inherit, unless it has both already.

    Above all glibc keeps memory that was freed: a page that the kernel maps afresh costs 3 to 18 microseconds on the machines
    measured here, 2,048 of them for one gradient of 8 MiB, and no training pays that after its first step.
    """
    from mtlib.run.forge import KERNEL_ENV, THREADS

    wanted = KERNEL_ENV | dict.fromkeys(THREADS, "1")
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | wanted)
