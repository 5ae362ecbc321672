"""The benchmarks run on our own part, and the report says what the rows say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks import _report, _timing

ROOT = Path(__file__).resolve().parents[1]


def test_quick_benchmark_runs_every_group_and_writes_nothing():
    before = {p: p.stat().st_mtime_ns for p in (ROOT / "benchmarks").glob("*.*")}
    command = [sys.executable, "-m", "benchmarks.speed", "--quick"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for what in {target[0] for target in _report.TARGETS} | {"top images of every latent"}:
        assert what in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (ROOT / "benchmarks").glob("*.*")}


def test_ratio_is_ours_over_theirs_and_targets_are_judged_by_the_best_peer(tmp_path):
    seconds = {"ours": np.array([1.0, 2, 3]), "sae-lens": np.array([9.0]), "overcomplete": np.array([8.0])}
    rows = _timing.rows("BatchTopK step", "D 4, B 10", 10, seconds)
    assert [r["samples_per_second"] for r in rows] == [5.0, 1.1, 1.2]
    assert [r["ratio_of_ours"] for r in rows] == [1.0, 4.5, 4.0]
    assert _report.verdicts(rows) == [("BatchTopK step", "D 4, B 10", "overcomplete", 4.0, 4.0)]
    _report.write_report(tmp_path / "README.md", rows, 15)
    assert "| overcomplete | ≥ 4 | 4.00 | met |" in (tmp_path / "README.md").read_text()


def test_committed_results_are_rows_with_their_report():
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    report = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert rows and all(
        {"what", "shape", "method", "samples_per_second", "ratio_of_ours"} <= row.keys() for row in rows
    )
    assert all(f"| {row['what']} | {row['shape']} | {row['method']} |" in report for row in rows)
