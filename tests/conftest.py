"""What all tests share: the same threads as a run, no display, repeatable examples, and the real data if it is there."""

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")

import hypothesis  # noqa: E402 - the settings above must come before numpy and torch are loaded
import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything loads Triton, or its own functions are no longer run by it

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def one_thread():
    """A single thread for PyTorch: processes share what there is, and sums end in other digits with other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data(repo):
    """A function: name -> folder of real data beside the repository; the test skips when it is not there."""

    def find(name: str) -> Path:
        folder = repo.parent / "shared" / "data" / name
        if not folder.exists():
            pytest.skip(f"no real data at {folder.relative_to(repo.parent)}, beside the repository")
        return folder

    return find
