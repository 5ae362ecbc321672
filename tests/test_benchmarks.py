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
    slow = [r | {"ratio_of_ours": 3.0} for r in rows if r["method"] != "sae-lens"]
    found = [{"processor": name, "torch": "2", "rounds": 15, "rows": r} for name, r in (("A", rows), ("B", slow))]
    _report.write_report(tmp_path / "README.md", found)
    assert "| overcomplete | ≥ 4 | 4.00 | 3.00 | missed |" in (tmp_path / "README.md").read_text()
    _report.write_report(tmp_path / "README.md", found[:1])
    assert "| overcomplete | ≥ 4 | 4.00 | met |" in (tmp_path / "README.md").read_text()
    assert _report.results_of(tmp_path, "Intel(R) Xeon(R) Processor").name == "results-intel-xeon.json"


def test_committed_results_are_rows_with_their_report():
    report = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "benchmarks").glob("results-*.json"))
    assert files
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert _report.results_of(file.parent, found["processor"]) == file and found["rounds"] >= 15
        for r in found["rows"]:
            rate = f"{r['samples_per_second']:.0f} ({r['quartiles'][0]:.0f} to {r['quartiles'][1]:.0f})"
            assert f"| {r['what']} | {r['shape']} | {r['method']} | {rate} | {r['ratio_of_ours']:.2f} |" in report
