"""The tests pass with every set of instructions and number of threads that the numerical libraries can be told to use.

    ./run_all.sh prove processors [--quick] [--only WORD] [PATH ...]

Other processors add in another order, so that results differ in their last digits, and a test that asks for more of them
than two correct computations share passes on one machine only. This runs the tests (or those of the given paths; with
--quick those that compute) once for each setting below in a process of its own, and says which computations then end in
other digits than before. It cannot show what a processor of another make does. Without paths, --quick or --only it writes
proofs/results/processors.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.report.text import markdown_table
from mtlib.run.artifacts import write_text
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
QUICK = tuple(f"tests/{name}" for name in ("coders", "learn", "measure", "truth", "features", "embed", "judge"))
NUMPY_OFF = " ".join(np.show_config("dicts")["SIMD Extensions"]["found"])  # what it uses beyond every processor's
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",
    "NPY_DISABLE_CPU_FEATURES": NUMPY_OFF,
}
SETTINGS = {
    "as it is": {},
    "two threads": {"threads": "2"},
    "MKL for every processor": {"MKL_CBWR": "COMPATIBLE"},
    "MKL with AVX2": {"MKL_CBWR": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "PyTorch without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "OpenBLAS of 2004": {"OPENBLAS_CORETYPE": "Prescott"},
    "NumPy without vectors": {"NPY_DISABLE_CPU_FEATURES": NUMPY_OFF},
    "all with AVX2": AVX2,
    "all with AVX2, two threads": AVX2 | {"threads": "2"},
    "all the oldest": OLDEST,
}
PROBE = """
import hashlib, json, numpy as np, torch
a, b = np.random.default_rng(0).normal(size=(2, 257, 129)).astype(np.float32)
s, t, wide = torch.from_numpy(a), torch.from_numpy(b), np.tile(a, (9, 9))
found = {
    "torch product": s @ t.T,
    "torch softmax": s.softmax(1),
    "torch convolution": torch.nn.functional.conv2d(s[None, None], t[None, None, :9, :9]),
    "numpy product": wide @ wide.T,
    "numpy exp": np.exp(a),
}
print(json.dumps({name: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for name, value in found.items()}))
"""


def environment(setting: dict[str, str]) -> dict[str, str]:
    """The variables of a process with a setting; one thread where it names no number."""
    given = {"PYTHONPATH": str(ROOT)} | setting
    threads = given.pop("threads", "1")
    kept = {k: v for k, v in os.environ.items() if k not in OLDEST}  # the caller's own would be there every time
    return kept | {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")} | given


def digits(env: dict[str, str]) -> dict[str, str]:
    """A hash of the result of each computation of PROBE."""
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def outcome(report: Path) -> tuple[dict[str, float], list[str]]:
    """Counts and seconds of a JUnit report of pytest, and the names of the tests that failed."""
    suite = ET.parse(report).getroot().find("testsuite")
    count = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    bad = {"failure", "error"}
    names = [f"{c.get('classname')}::{c.get('name')}" for c in suite.iter("testcase") if {e.tag for e in c} & bad]
    seconds = round(float(suite.get("time")))
    return {"passed": passed, "failed": failed, "skipped": count["skipped"], "seconds": seconds}, names


def run(env: dict[str, str], paths: list[str], processes: int) -> tuple[dict[str, float], list[str]]:
    """Counts and failures of the tests of `paths` in an environment; a crash of pytest itself is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(processes), "--dist", "loadfile"]
        command += ["-p", "no:cacheprovider", "--tb", "short", f"--junitxml={report}", *paths]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if not report.is_file():
            return {"passed": 0, "failed": 1, "skipped": 0, "seconds": 0}, [f"pytest: {done.stderr[-500:]}"]
        counts, names = outcome(report)
        if names:
            print(done.stdout[-20_000:])
        return counts, names


def main() -> int:
    """Returns 0 when no test failed anywhere, 1 when one did, 2 when --only fits no setting."""
    parser = argparse.ArgumentParser(prog="prove processors", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", help="files or folders of tests; all when there are none")
    parser.add_argument("--quick", action="store_true", help="the folders that compute: " + ", ".join(QUICK))
    parser.add_argument("--only", default="", metavar="WORD", help="settings whose name holds this word")
    parser.add_argument("--processes", type=int, default=2, help="test processes at a time")
    args = parser.parse_args()
    paths = args.paths or list(QUICK if args.quick else ["tests"])
    chosen = {name: setting for name, setting in SETTINGS.items() if args.only in name}
    if not chosen:
        print(f"error: --only {args.only}: there are {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    lines, failures, own = [], [], digits(environment({}))
    for name, setting in chosen.items():
        env = environment(setting)
        other = [what for what, value in digits(env).items() if value != own[what]]
        counts, names = run(env, paths, args.processes)
        lines.append({"setting": name, "other": ", ".join(other)} | counts)
        failures += [f"- {name}: {test}" for test in names]
        print({k: v for k, v in lines[-1].items() if v != ""}, flush=True)
    text = "# The tests under other instructions and threads\n\n"
    text += f"`pytest {' '.join(paths)}`; {made_with()}.\n\n"
    columns = {name: name for name in ("setting", "passed", "failed", "skipped", "seconds")}
    text += markdown_table(pd.DataFrame(lines), columns | {"other": "ends in other digits"}) + "\n"
    text += "\n".join(["", *failures, ""]) if failures else ""
    print(text)
    if not (args.paths or args.quick or args.only):
        write_text(ROOT / "proofs" / "results" / "processors.md", text)
    failed = sum(line["failed"] for line in lines)
    return 1 if failed or not all(line["passed"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
