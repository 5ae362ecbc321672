"""Notebook pairs: made repeatably, and every drift is found."""

import json

import pytest

from mtlib.run import pairs
from tests.run import small


@pytest.fixture
def source(tmp_path):
    path = small.write(tmp_path).notebooks / "01_make.py"
    pairs.make(path)
    return path


def test_make_is_repeatable_and_leaves_a_pair(source):
    target = source.with_suffix(".ipynb")
    first = target.read_bytes()
    assert pairs.differences(source) == []
    assert not pairs.make(source)
    target.unlink()
    assert pairs.differences(source) == ["01_make.ipynb is missing; make it with ./run_all.sh pair"]
    assert pairs.make(source)
    assert target.read_bytes() == first


def test_drift_in_a_cell_is_found_and_mended(source):
    source.write_text(source.read_text().replace("n = 2", "n = 3"))
    assert "01_make.ipynb" in pairs.differences(source)[0]
    assert pairs.make(source)
    assert pairs.differences(source) == []


@pytest.mark.parametrize("change", ["cell", "tag", "output"])
def test_drift_in_the_ipynb_is_found(source, change):
    target = source.with_suffix(".ipynb")
    notebook = json.loads(target.read_text())
    if change == "cell":
        notebook["cells"].pop()
    if change == "tag":
        notebook["cells"][1]["metadata"] = {}
    if change == "output":
        notebook["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    target.write_text(json.dumps(notebook))
    assert pairs.differences(source)
