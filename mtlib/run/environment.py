"""Whether a Python environment has what pyproject.toml asks for; standard library only.

python -m mtlib.run.environment [extra ...]     prints what is missing; exit 0 when nothing is
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?$")


def requirements(pyproject: Path = PYPROJECT) -> dict[str, list[str]]:
    """{"": dependencies, extra: its dependencies} of a pyproject.toml (Python 3.10 has no TOML reader).

    Raises: ValueError when there is no list of dependencies.
    """
    found: dict[str, list[str]] = {}
    section = name = ""
    for line in pyproject.read_text(encoding="utf-8").splitlines():
        if header := re.match(r"^\[([\w.-]+)\]", line):
            section, name = header[1], ""
        elif section in ("project", "project.optional-dependencies") and (key := re.match(r"^([\w-]+)\s*=\s*\[", line)):
            if section == "project" and key[1] != "dependencies":
                continue
            name = key[1]
            found["" if section == "project" else name] = re.findall(r'"([^"]+)"', line)
            name = "" if "]" in line else name
        elif name:
            found["" if section == "project" else name] += re.findall(r'"([^"]+)"', line)
            name = "" if line.startswith("]") else name
    if "" not in found:
        raise ValueError(f"{pyproject}: no list `dependencies` under [project]")
    return found


def missing(extras: list[str]) -> list[str]:
    """Requirements of the project and of `extras` that this Python does not satisfy."""
    wanted = requirements()
    unknown = sorted(set(extras) - set(wanted))
    if unknown:
        raise ValueError(
            f"{PYPROJECT.name} has no extra {unknown[0]}; there are {', '.join(sorted(set(wanted) - {''}))}"
        )
    return [r for extra in ["", *extras] for r in wanted[extra] if not satisfied(r)]


def satisfied(requirement: str) -> bool:
    """Whether `name>=version` is installed. Raises ValueError on any other form of requirement."""
    match = REQUIREMENT.match(requirement)
    if not match:
        raise ValueError(f"{requirement}: write it as name>=version")
    try:
        installed = metadata.version(match[1])
    except metadata.PackageNotFoundError:
        return False
    return _numbers(installed) >= _numbers(match[2] or "0")


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"[0-9.]*", version)[0].strip(".")
    return tuple(int(part) for part in release.split(".") if part) + (0,) * (6 - release.count("."))


if __name__ == "__main__":
    lacking = missing(sys.argv[1:])
    if sys.version_info < (3, 10):  # noqa: UP036 - an active environment may be older
        lacking = [f"python>=3.10 (this is {sys.version.split()[0]})", *lacking]
    print("\n".join(lacking), end="\n" if lacking else "")
    sys.exit(1 if lacking else 0)
