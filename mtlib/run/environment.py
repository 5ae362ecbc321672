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


def requirements(pyproject: Path = PYPROJECT) -> dict[str, list[str]]:
    """{"": dependencies, extra: its dependencies} of a pyproject.toml. Raises KeyError when it lists none."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"]} | project.get("optional-dependencies", {})


def missing(extras: list[str]) -> list[str]:
    """Requirements of the project and of `extras` that this Python does not satisfy. Raises KeyError for an unknown extra."""
    wanted = requirements()
    return [r for extra in ["", *extras] for r in wanted[extra] if not satisfied(Requirement(r))]


def satisfied(requirement: Requirement) -> bool:
    """Whether a fitting version is installed."""
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    lacking = missing(sys.argv[1:])
    if sys.version_info < (3, 10):  # noqa: UP036 - an active environment may be older
        lacking = [f"python>=3.10 (this is {sys.version.split()[0]})", *lacking]
    print("\n".join(lacking), end="\n" if lacking else "")
    sys.exit(1 if lacking else 0)
