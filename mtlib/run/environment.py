"""Whether a Python environment has what pyproject.toml asks for.

python -m mtlib.run.environment [extra ...]     prints what is missing; exit 0 when nothing is
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def requirements() -> dict[str, list[str]]:
    """{"": dependencies, extra: its dependencies} of the project."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"]} | project.get("optional-dependencies", {})


def satisfied(requirement: Requirement) -> bool:
    """Whether a fitting version is installed."""
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def missing(extras: list[str]) -> list[str]:
    """Requirements of the project and of `extras` that this Python does not satisfy. Raises KeyError for an unknown extra."""
    wanted = [f"python>=3.10 (this is {sys.version.split()[0]})"] if sys.version_info < (3, 10) else []
    return wanted + [r for extra in ["", *extras] for r in requirements()[extra] if not satisfied(Requirement(r))]


if __name__ == "__main__":
    sys.exit("\n".join(missing(sys.argv[1:])) or 0)
