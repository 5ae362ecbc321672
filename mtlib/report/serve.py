"""./run_all.sh viewer: the viewer's notebook as an app in the browser, by Voilà.

python -m mtlib.report.serve [run] [an option of Voilà ...]
"""

from __future__ import annotations

import os
import sys

from mtlib.run.artifacts import ROOT, ArtifactError, finished_runs

RUN = "MTLIB_VIEWER_RUN"  # environment variable: folder of the run to start with
VOILA = ["-m", "voila", str(ROOT / "notebooks" / "viewer.ipynb"), "--show_tracebacks=True"]

if __name__ == "__main__":
    given = sys.argv[1:]
    run = f"runs/{given.pop(0)}" if given and not given[0].startswith("-") else ""
    try:
        finished_runs(run)
    except ArtifactError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
    os.execve(sys.executable, [sys.executable, *VOILA, *given], os.environ | {RUN: run})
