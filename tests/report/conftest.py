"""One synthetic run, written once for all tests of this folder; they only read it."""

from __future__ import annotations

import pytest

from tests.report.synthetic_run import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of 01 .. 06 with labels and images."""
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """A run of embeddings without labels and without images."""
    return write_run(tmp_path_factory.mktemp("runs") / "arrays", labels="none", n=400, images=False)
