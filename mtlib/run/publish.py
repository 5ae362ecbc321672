"""From artifacts to `reports/<run>/`: figures, tables, collages, notebooks, README and times.

Every published file belongs to one stage, told by the number that its name starts with (collages: 05, and 07 under
collages/07_*). Publishing happens once, after the last stage, so that a report never mixes two runs.
"""

from __future__ import annotations

import csv
import filecmp
import shutil
from pathlib import Path

from mtlib.run.artifacts import write_text

TIMING_COLUMNS = ("stage", "seconds", "peak_mb")
MARKERS = ("<!-- timings -->", "<!-- /timings -->")


def check_names(stage: str, folder: Path) -> None:
    """Refuse a figure or table whose name does not start with its stage's number.

    Raises: ValueError naming the file and the name expected.
    """
    number = stage.split("_")[0]
    for kind in ("figures", "tables"):
        for file in sorted((folder / kind).glob("*")):
            if not file.name.startswith(f"{number}_"):
                raise ValueError(f"{stage} wrote {kind}/{file.name}; its name must start with {number}_")


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
    if (folder / "README.md").is_file():
        files["README.md"] = folder / "README.md"
    return files


def publish(report: Path, folders: dict[str, Path], rendered: Path, timings: dict[str, dict]) -> None:
    """Make `report` show exactly these stages: copy what changed, remove what an earlier run left behind.

    Args:
        report:   reports/<run>.
        folders:  stage -> its artifact's folder.
        rendered: folder of the executed notebooks' copies.
        timings:  stage -> {"seconds", "peak_mb"}.
    """
    files: dict[str, Path] = {}
    for stage, folder in folders.items():
        files |= published_files(stage, folder, rendered)
    numbers = tuple(stage.split("_")[0] + "_" for stage in folders)
    for kind in ("figures", "tables", "notebooks", "collages"):
        for old in sorted((report / kind).rglob("*")) if (report / kind).is_dir() else []:
            ours = kind == "collages" or old.name.startswith(numbers)
            if old.is_file() and ours and old.relative_to(report).as_posix() not in files:
                old.unlink()
    readme = files.pop("README.md", None)
    for name, file in files.items():
        target = report / name
        if not target.is_file() or not filecmp.cmp(file, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    for folder in sorted((p for p in report.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    if readme is not None:
        write_text(report / "README.md", with_timings(readme.read_text(encoding="utf-8"), timings))
    write_timings(report / "timings.csv", timings)


def with_timings(text: str, timings: dict[str, dict]) -> str:
    """`text` with a table of the stages' times between the two markers, if it has them."""
    start, end = text.find(MARKERS[0]), text.find(MARKERS[1])
    if start < 0 or end < start:
        return text
    rows = [(stage, f"{float(t['seconds']):.0f}", f"{float(t['peak_mb']):.0f}") for stage, t in timings.items()]
    rows.append(
        ("all", f"{sum(float(t['seconds']) for t in timings.values()):.0f}", max((r[2] for r in rows), key=int))
    )
    table = "\n".join(
        ["| stage | seconds | peak memory, MB |", "|---|---:|---:|", *(f"| {' | '.join(r)} |" for r in rows)]
    )
    return text[: start + len(MARKERS[0])] + f"\n\n{table}\n\n" + text[end:]


def read_timings(path: Path) -> dict[str, dict]:
    """stage -> {"seconds", "peak_mb"} of a timings.csv; empty when there is none."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as f:
        return {row["stage"]: {k: row[k] for k in TIMING_COLUMNS[1:]} for row in csv.DictReader(f)}


def write_timings(path: Path, timings: dict[str, dict]) -> None:
    """Write timings.csv (stage, seconds, peak_mb), stages in order."""
    lines = [",".join(TIMING_COLUMNS)]
    lines += [f"{stage},{float(t['seconds']):.1f},{float(t['peak_mb']):.0f}" for stage, t in sorted(timings.items())]
    write_text(path, "\n".join(lines) + "\n")
