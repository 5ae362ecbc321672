"""A whole run killed with SIGKILL at 24 random moments, over all its stages and while publishing, ends with the same bytes.

    ./run_all.sh prove kills_run [--kills 24] [--seed 0]

The demo on a few hundred scenes, once left alone and once killed in every stage, kernel and all, and in the moment in which
its report is written; then every artifact's record of files and every published file but the times are compared. Writes
proofs/results/kills_run.md.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mtlib.run.artifacts import NOTEBOOKS, current, read_meta
from proofs import conclude, made_with

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "n_scenes=300 n_per_generator=20 steps=30 epochs=2 n_latents=64 seeds=[0] batch=64 n_collages=2 n_label_images=2"
)
WHOLE, KILLED = "kills_whole", "kills_killed"
PUBLISHING = "publishing"


def start(name: str) -> subprocess.Popen:
    """The run, in a process group of its own, so that its kernel can be killed with it."""
    words = [w for pair in [*SMALL.split(), f"run={name}"] for w in ("-p", pair)]
    command = [sys.executable, "-m", "mtlib.run.pipeline", "demo", "--smoke", *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def where(name: str, stages: list[str]) -> str:
    """The stage that is being written, or "publishing" once the last one stands; "" before the first."""
    run_dir = ROOT / "runs" / name
    parts = [p.name.rsplit("-", 1)[0] for p in run_dir.glob("*.part")]
    if parts:
        return parts[0]
    done = [s for s in stages if list(run_dir.glob(f"{s}-????????"))]
    return PUBLISHING if len(done) == len(stages) else ""


def lives(kills: int, seed: int, stages: list[str], seconds: dict[str, float]) -> list[str]:
    """Start the run again and again; each life but the last is killed somewhere in the stage it is meant to die in.

    Returns: the stage of each kill.
    """
    rng, killed = random.Random(seed), []
    places = [(stages + [PUBLISHING])[i * (len(stages) + 1) // kills] for i in range(kills)]  # in the order of the run
    for place in places:
        life = start(KILLED)
        while life.poll() is None and where(KILLED, stages) != place:
            time.sleep(0.002 if place == PUBLISHING else 0.05)
        time.sleep(rng.uniform(0.0, 0.5 if place == PUBLISHING else 0.8 * seconds[place]))
        if life.poll() is None:
            killed.append(where(KILLED, stages) or "between two stages")
            os.killpg(life.pid, signal.SIGKILL)
        life.wait()
    if start(KILLED).wait():
        sys.exit("the last life failed; see runs/" + KILLED)
    return killed


def compare() -> list[str]:
    """What differs between the two runs: artifacts by their files, published files by their bytes."""
    folders = [ROOT / "runs" / name for name in (WHOLE, KILLED)]
    now = [{s: read_meta(folder / f)["files"] for s, f in current(folder).items()} for folder in folders]
    for files in (files for one in now for files in one.values()):  # a notebook tells its run's name
        for name in [name for name in files if name.startswith(NOTEBOOKS)]:
            del files[name]
    bad = [f"artifact {s}: {f}" for s in now[0] for f, h in now[0][s].items() if now[1].get(s, {}).get(f) != h]
    reports = [ROOT / "reports" / name for name in (WHOLE, KILLED)]
    kinds = ("tables", "figures", "collages", "notebooks")
    files = {p.relative_to(r).as_posix() for r in reports for k in kinds for p in (r / k).rglob("*") if p.is_file()}
    for name in sorted(files):
        texts = [
            (r / name).read_bytes().replace(w.encode(), b"RUN") if (r / name).is_file() else b""
            for r, w in zip(reports, (WHOLE, KILLED), strict=True)
        ]
        bad += [] if texts[0] == texts[1] or name.startswith("notebooks/") else [f"report {name}"]
    return bad


def main() -> int:
    """Returns 0 when every kill landed and nothing differs, else 1."""
    parser = argparse.ArgumentParser(prog="prove kills_run", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in (WHOLE, KILLED):
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
        shutil.rmtree(ROOT / "reports" / name, ignore_errors=True)
    begun = time.monotonic()
    if start(WHOLE).wait():
        sys.exit("the undisturbed run failed; see runs/" + WHOLE)
    alone = time.monotonic() - begun
    lines = (ROOT / "reports" / WHOLE / "timings.csv").read_text(encoding="utf-8").splitlines()[1:]
    seconds = {line.split(",")[0]: float(line.split(",")[1]) for line in lines}
    whole, aside = (ROOT / folder / WHOLE for folder in ("runs", ".aside"))
    aside.parent.mkdir(exist_ok=True)
    whole.rename(aside)  # or the other run would take its finished stages
    try:
        killed = lives(args.kills, args.seed, list(seconds), seconds)
    finally:
        aside.rename(whole)
        aside.parent.rmdir()
    bad = compare()
    ok = len(killed) >= args.kills - 2 and len(killed) >= 20 and not bad
    text = [
        f"# A whole run that is killed {len(killed)} times",
        "",
        f"The run takes {alone:.0f} s alone. {made_with()}.",
        "",
    ]
    text += ["| killed in | times |", "|---|---:|", *(f"| {p} | {n} |" for p, n in Counter(killed).items()), ""]
    text += [f"{len(bad)} files differ.", *(f"- {b}" for b in bad[:20]), ""]
    return conclude("kills_run", "\n".join(text), ok)


if __name__ == "__main__":
    sys.exit(main())
