"""From artifacts to `reports/<run>/`: figures, tables, collages, notebooks, README and times.

Every published file belongs to one stage, told by the number, or the unnumbered notebook's name, that its name starts
with (collages: 05, and others under collages/<prefix>_*). The README.md of 07 is the report's; that of an unnumbered
notebook is a section of it. Publishing happens once, after the last stage, so that a report never mixes two runs.
"""

from __future__ import annotations

import csv
import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

from mtlib.run.artifacts import atomic, write_text
from mtlib.run.notebook import StageFailed
from mtlib.run.profiles import Places
from mtlib.run.stage import prefix_of as prefix

TIMING_COLUMNS = ("stage", "seconds", "peak_mb")


def check_names(stage: str, folder: Path, prefix: str) -> None:
    """Refuse a figure, table or folder of collages whose name does not start with the prefix that its stage declares.

    Raises: ValueError naming the file and the name expected.
    """
    for kind in ("figures", "tables", "collages"):
        for file in sorted((folder / kind).glob("*")):
            if not file.name.startswith(f"{prefix}_"):
                raise ValueError(f"{stage} wrote {kind}/{file.name}; its name must start with {prefix}_")


def published_files(stage: str, folder: Path, rendered: Path) -> dict[str, Path]:
    """Path in the report -> file, for everything that a finished stage publishes."""
    files = {}
    for kind in ("figures", "tables", "collages"):
        for file in sorted((folder / kind).rglob("*")):
            if file.is_file():
                files[file.relative_to(folder).as_posix()] = file
    for file in sorted((folder / "features").glob("*/collages/*")):
        files[f"collages/{file.parents[1].name}/{file.name}"] = file
    for suffix in (".ipynb", ".html"):
        copy = rendered / f"{folder.name}{suffix}"
        if copy.is_file():
            files[f"notebooks/{stage}{suffix}"] = copy
    return files


def publish(report: Path, folders: dict[str, Path], run_dir: Path, timings: dict[str, dict], places: Places) -> None:
    """Make `report` show exactly these stages: copy what changed, remove what an earlier run left behind, write its pages.

    Args:
        report:  reports/<run>.
        folders: stage -> its artifact's folder.
        run_dir: runs/<run>; the executed notebooks' copies are in `rendered` there.
        timings: stage -> {"seconds", "peak_mb"}.
        places:  the repository, whose mtlib.report writes the pages in a process of its own.
    """
    files: dict[str, Path] = {}
    for stage, folder in folders.items():
        files |= published_files(stage, folder, run_dir / "rendered")
    for kind in ("figures", "tables", "notebooks", "collages"):
        for old in sorted((report / kind).rglob("*")) if (report / kind).is_dir() else []:
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
    write_timings(report / "timings.csv", timings)
    if (places.package / "report" / "build.py").is_file():
        done = subprocess.run(
            [sys.executable, "-m", "mtlib.report.build", str(run_dir), str(report)],
            cwd=places.root,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StageFailed(
                f"the report could not be written: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
    elif readme := next((f / "README.md" for s, f in folders.items() if _numbered(s) and _has_readme(f)), None):
        text = between(readme.read_text(encoding="utf-8"), "timings", timings_table(timings))
        further = [section(s, f, files) for s, f in folders.items() if not _numbered(s)]
        write_text(report / "README.md", between(text, "notebooks", "\n\n".join(further)))


def _numbered(stage: str) -> bool:
    return stage[:1].isdigit()


def _has_readme(folder: Path) -> bool:
    return (folder / "README.md").is_file()


def section(stage: str, folder: Path, files: dict[str, Path]) -> str:
    """An unnumbered notebook's part of the report: its README.md (else its name), and links to what it published."""
    text = (folder / "README.md").read_text(encoding="utf-8") if _has_readme(folder) else f"## Notebook {stage}"
    shown = {f"notebooks/{stage}.html": "read", f"notebooks/{stage}.ipynb": "run"}
    own = (f"tables/{prefix(stage)}_", f"figures/{prefix(stage)}_")
    shown |= {n: Path(n).name.removeprefix(f"{prefix(stage)}_") for n in files if n.startswith(own)}
    links = ", ".join(f"[{label}]({name})" for name, label in shown.items() if name in files)
    return f"{text.strip()}\n\nNotebook `{stage}`: {links}."


def between(text: str, name: str, new: str) -> str:
    """`text` with `new` between its markers `<!-- name -->` and `<!-- /name -->`, if it has them."""
    start, end = text.find(f"<!-- {name} -->"), text.find(f"<!-- /{name} -->")
    if start < 0 or end < start:
        return text
    return text[: start + len(f"<!-- {name} -->")] + (f"\n\n{new}\n\n" if new else "\n") + text[end:]


def timings_table(timings: dict[str, dict]) -> str:
    """The stages' times and peaks as Markdown."""
    rows = [(stage, f"{float(t['seconds']):.0f}", f"{float(t['peak_mb']):.0f}") for stage, t in timings.items()]
    rows.append(
        ("all", f"{sum(float(t['seconds']) for t in timings.values()):.0f}", max((r[2] for r in rows), key=int))
    )
    head = ["| stage | seconds | peak memory, MB |", "|---|---:|---:|"]
    return "\n".join([*head, *(f"| {' | '.join(r)} |" for r in rows)])


def read_timings(path: Path) -> dict[str, dict]:
    """stage -> {"seconds", "peak_mb"} of a timings.csv; empty when there is none."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as f:
        return {row["stage"]: {k: row[k] for k in TIMING_COLUMNS[1:]} for row in csv.DictReader(f)}


def write_timings(path: Path, timings: dict[str, dict]) -> None:
    """Write timings.csv (stage, seconds, peak_mb), stages in order."""
    lines = [",".join(TIMING_COLUMNS)]
    lines += [f"{stage},{float(t['seconds']):.1f},{float(t['peak_mb']):.0f}" for stage, t in timings.items()]
    write_text(path, "\n".join(lines) + "\n")
