"""The list of dependencies, and what an environment lacks."""

import pytest
from packaging.requirements import Requirement

from mtlib.run import environment


def test_requirements_are_those_of_the_project_and_its_extras(tmp_path, monkeypatch):
    path = tmp_path / "pyproject.toml"
    path.write_text(
        '[project]\nname = "x"\ndependencies = ["a>=1", "b"]\n[project.optional-dependencies]\nviewer = ["c>=2"]\n'
    )
    monkeypatch.setattr(environment, "PYPROJECT", path)
    assert environment.requirements() == {"": ["a>=1", "b"], "viewer": ["c>=2"]}


def test_satisfied_compares_versions(monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.10.1+cu12")
    fits = {"x>=2.9": True, "x>=2.10.1": True, "x": True, "x>=2.11": False, "x<3": True}
    assert {text: environment.satisfied(Requirement(text)) for text in fits} == fits


def test_this_environment_has_what_the_tests_need():
    assert environment.missing(["test"]) == []
    assert not environment.satisfied(Requirement("no-such-package-of-ours>=1"))
    with pytest.raises(KeyError, match="tests"):
        environment.missing(["tests"])
