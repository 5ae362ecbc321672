"""The five published systems with --smoke: each offline, on any machine, in less than five minutes.

    ./run_all.sh prove smoke [profile ...]       without names: all five

Every run starts from nothing, and every request to another host would fail (the proxy is a closed port of this machine).
Writes proofs/results/smoke.md, and leaves reports/<profile>-smoke/ without the executed notebooks and with small figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from PIL import Image

from mtlib.report.text import markdown_table
from mtlib.run.artifacts import atomic, write_json, write_text
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "proofs" / "results"
PROFILES = ("matryoshka_transcoders", "msae", "monoloss", "sae_for_clip", "alexnet")
LIMIT = 300  # seconds
CLOSED = "http://127.0.0.1:9"
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), CLOSED)
NO_NOTEBOOKS = re.compile(r"\[(?:read|run)\]\(notebooks/[^)]*\)(?:, )?")


def run(profile: str) -> dict:
    """One smoke run from nothing: profile, seconds, seconds of CPU, peak_mb of its largest kernel, stages, report_mb, ok.

    Raises: SystemExit with the end of its output when it fails.
    """
    name = f"{profile}-smoke"
    shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
    shutil.rmtree(ROOT / "reports" / name, ignore_errors=True)
    env = os.environ | OFFLINE | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-m", "mtlib.run.pipeline", profile, "--smoke"]
    start, before = time.monotonic(), os.times()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - start, os.times()
    if done.returncode:
        raise SystemExit(f"{profile} --smoke ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cpu = sum(after[2:4]) - sum(before[2:4])
    timings = pd.read_csv(ROOT / "reports" / name / "timings.csv")
    lighten(ROOT / "reports" / name)
    size = sum(p.stat().st_size for p in (ROOT / "reports" / name).rglob("*") if p.is_file())
    return {
        "profile": profile,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu),
        "peak_mb": round(timings["peak_mb"].max()),
        "stages": len(timings),
        "report_mb": round(size / 1e6, 2),
        "ok": seconds < LIMIT,
    }


def lighten(report: Path) -> None:
    """Leave the executed notebooks out of a report, and the links to them out of its README; figures at half their size."""
    shutil.rmtree(report / "notebooks", ignore_errors=True)
    for path in sorted((report / "figures").glob("*.png")):
        picture = Image.open(path).convert("RGB")
        small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
        with atomic(path) as tmp:
            small.quantize(128, dither=Image.Dither.NONE).save(tmp, "PNG", optimize=True)
    readme = report / "README.md"
    text = NO_NOTEBOOKS.sub("", readme.read_text(encoding="utf-8"))
    note = "The executed notebooks are left out of this copy, and its figures are at half their size; the same command makes all."
    write_text(readme, text.replace("## Everything else\n", f"## Everything else\n\n{note}\n"))


def main(names: list[str]) -> int:
    """Returns 0 when every profile ended in time; results of profiles that are not named stay."""
    if unknown := set(names) - set(PROFILES):
        raise SystemExit(f"{sorted(unknown)[0]}: there are {', '.join(PROFILES)}")
    kept = RESULTS / "smoke.json"
    found = {r["profile"]: r for r in json.loads(kept.read_text(encoding="utf-8"))} if kept.is_file() else {}
    for profile in names or PROFILES:
        found[profile] = run(profile)
        print(found[profile], flush=True)
        write_json(kept, [found[p] for p in PROFILES if p in found])
        write_result([found[p] for p in PROFILES if p in found])
    return 0 if all(r["ok"] for r in found.values()) else 1


def write_result(found: list[dict]) -> None:
    """Write proofs/results/smoke.md from what `run` returned."""
    columns = {"profile": "profile", "seconds": "seconds", "cpu_seconds": "of CPU", "peak_mb": "peak memory, MB"}
    columns |= {"stages": "stages", "report_mb": "report, MB", "ok": f"under {LIMIT} s"}
    left = [p for p in PROFILES if p not in {r["profile"] for r in found}]
    lines = [
        "# The five systems with --smoke",
        "`./run_all.sh prove smoke`: each from nothing, on rendered scenes, with the bundled encoder; requests to other hosts "
        "would have failed. Seconds are of the wall clock; where they are far more than those of CPU, the machine was doing "
        f"other work. Threads: {os.environ.get('OMP_NUM_THREADS', '2')}. Not run here: {', '.join(left) or 'none'}.",
        markdown_table(pd.DataFrame(found), columns),
        made_with() + ".",
    ]
    write_text(RESULTS / "smoke.md", "\n\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
