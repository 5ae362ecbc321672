"""What stands in reports/: of every run its figures, tables, collages, notebooks, pages and times, and what is kept of it.

Every file belongs to one stage, told by the prefix that its name starts with (those in published/ aside). Publishing
happens once, after the last stage, so that a report never mixes two runs. `./run_all.sh keep <run>` copies what is worth
keeping, small enough for git, into reports/kept/<run>/: the pages, the pictures of the first one, those of others up to
40 kB and tables up to 50 kB; of the demo also the executed notebooks. Links to what is not kept become plain text.
"""

from __future__ import annotations

import contextlib
import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mtlib.run import artifacts
from mtlib.run.artifacts import NOTEBOOKS, ArtifactError, StageFailed, atomic, visible, write_text
from mtlib.run.forge import asking
from mtlib.run.params import ParamsError
from mtlib.run.profiles import KEPT, Places

DECLARED = ("figures", "tables", "collages")  # folders of a stage
PUBLISHED = "published"  # a stage's folder of files as the published systems write them, with names of their own
COPIED = (*DECLARED, PUBLISHED, NOTEBOOKS)
RECORD = "published.json"  # of a run
TABLE_BYTES, PICTURE_BYTES, REPORT_BYTES, DEMO_BYTES = 50_000, 40_000, 1_500_000, 5_000_000
PICTURE = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src="([^"]+)"')
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")


def check_names(stage: str, folder: Path, prefix: str) -> None:
    """Refuse a figure, table or folder of collages whose name does not start with the prefix that its stage declares."""
    for kind in DECLARED:
        for file in sorted((folder / kind).glob("*")):
            if not file.name.startswith(f"{prefix}_"):
                raise ValueError(f"{stage} wrote {kind}/{file.name}; its name must start with {prefix}_")


def published_files(folder: Path) -> dict[str, Path]:
    """Path in the report -> file, for everything that a finished stage publishes."""
    files = {p.relative_to(folder).as_posix(): p for kind in COPIED for p in (folder / kind).rglob("*")}
    files |= {f"collages/{p.parents[1].name}/{p.name}": p for p in folder.glob("features/*/collages/*")}
    return {name: files[name] for name in sorted(files) if files[name].is_file()}


def publish(
    report: Path, folders: dict[str, Path], run_dir: Path, timings: dict[str, dict], places: Places, forge=None
) -> None:
    """Make `report` show exactly these stages: copy what changed, remove what an earlier run left behind, write its pages.

    The pages are written by the repository's mtlib.report in a process of its own.

    Args:
        folders: stage -> its artifact's folder.
        run_dir: runs/<run>; gets published.json, the hashes of the report's files.
        timings: stage -> its meta.json, or what else has seconds and peak_mb.
        forge:   a `forge.Forge` that this process comes from; None: an ordinary one.
    """
    files = {name: file for folder in folders.values() for name, file in published_files(folder).items()}
    with contextlib.suppress(ArtifactError):  # no report yet, or all of it is written again
        known = artifacts.read_record(run_dir / RECORD, "")["files"]
        for name in (name for name, found in artifacts.hash_files(report, known).items() if found != known[name]):
            print(f"sha256 mismatch: {report / name}; it is written again")
            (report / name).unlink()
    for old in (p for kind in COPIED for p in list((report / kind).rglob("*"))):
        if old.is_file() and old.relative_to(report).as_posix() not in files:
            old.unlink()
    for name, file in files.items():
        target = report / name
        if not target.is_file() or not filecmp.cmp(file, target, shallow=False):
            with atomic(target) as tmp:
                shutil.copyfile(file, tmp)
    for folder in sorted((p for p in report.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    lines = [f"{stage},{t['seconds']:.1f},{t['peak_mb']:.0f}\n" for stage, t in timings.items()]
    write_text(report / "timings.csv", "".join(["stage,seconds,peak_mb\n", *lines]))
    command = [sys.executable, "-m", "mtlib.report.build", str(run_dir), str(report)]
    command = [*(asking(forge.address) if forge else []), *command]
    done = subprocess.run(command, cwd=places.root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageFailed(f"the report could not be written: {said}")
    artifacts.close(report, run_dir / RECORD)


def keep(run: str, places: Places) -> Path:
    """Copy a run's report into reports/kept/<run>/, the folder that is returned, replacing what was kept of it before."""
    report, target = places.root / "reports" / run, places.root / "reports" / KEPT / run
    pages = sorted(report.glob("*.md"))
    if not pages:
        raise ParamsError(f"keep {run}: reports/{run}/ holds no page; run the profile first")
    artifacts.verify(report, places.root / "runs" / run / RECORD, "run the profile again, it writes the report anew")
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    shown = {a or b: name == pages[0].name for name, text in reversed(texts.items()) for a, b in PICTURE.findall(text)}
    sizes = {name: (report / name).stat().st_size for name in shown if (report / name).is_file()}
    files = {name for name, n in sizes.items() if shown[name] or n <= PICTURE_BYTES} | set(texts)
    files |= {f"tables/{p.name}" for p in (report / "tables").glob("*.csv") if p.stat().st_size <= TABLE_BYTES}
    files |= {f"notebooks/{p.name}" for p in (report / "notebooks").glob("*.ipynb") if run == "demo"}
    limit = DEMO_BYTES if run == "demo" else REPORT_BYTES
    size = sum((report / name).stat().st_size for name in files)
    if size > limit:
        largest = max(files, key=lambda name: (report / name).stat().st_size)
        raise ParamsError(f"keep {run}: {size:,} bytes, at most {limit:,} are kept; the largest is {largest}")

    def linked(link: re.Match) -> str:
        path = link[2].split("#")[0]
        return link[0] if not path or "://" in path or path.startswith("..") or path in files else link[1]

    shutil.rmtree(target, ignore_errors=True)
    for name in sorted(files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(report / name, target / name)
    for name, text in texts.items():
        (target / name).write_text(LINK.sub(linked, text), encoding="utf-8")
    return target


if __name__ == "__main__":
    try:
        for name in sys.argv[1:] or [""]:
            print(keep(name, Places()).relative_to(Places().root))
    except (ParamsError, ArtifactError) as e:
        sys.exit(visible(f"error: {e}"))
