"""The list of dependencies, and what an environment lacks."""

import re

import pytest

from mtlib.run import environment


def test_requirements_read_lists_on_one_line_and_many(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text(
        '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "x"\ndependencies = [\n  "a>=1",\n  "b",\n]\n'
        '[project.optional-dependencies]\nviewer = ["c>=2", "d"]\ntest = [\n  "e>=3",\n]\n[tool.x]\ny = ["z"]\n'
    )
    assert environment.requirements(path) == {"": ["a>=1", "b"], "viewer": ["c>=2", "d"], "test": ["e>=3"]}
    path.write_text("[project]\n")
    with pytest.raises(ValueError, match="no list `dependencies`"):
        environment.requirements(path)


def test_requirements_agree_with_a_toml_reader():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    project = tomllib.loads(environment.PYPROJECT.read_text())["project"]
    assert environment.requirements() == {"": project["dependencies"]} | project["optional-dependencies"]


def test_satisfied_compares_versions(monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.10.1+cu12")
    assert environment.satisfied("x>=2.9")
    assert environment.satisfied("x>=2.10.1")
    assert environment.satisfied("x")
    assert not environment.satisfied("x>=2.11")
    with pytest.raises(ValueError, match="write it as name>=version"):
        environment.satisfied("x<3")


def test_this_environment_has_what_the_tests_need():
    assert environment.missing(["test"]) == []
    assert not environment.satisfied("no-such-package-of-ours>=1")
    extras = ", ".join(sorted(set(environment.requirements()) - {""}))
    with pytest.raises(ValueError, match=re.escape(f"no extra tests; there are {extras}")):
        environment.missing(["tests"])
