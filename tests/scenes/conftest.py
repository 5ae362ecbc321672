import pytest

from mtlib.scenes.dataset import write_dataset


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A small data set on disk and its truth."""
    folder = tmp_path_factory.mktemp("scenes")
    return folder, write_dataset(folder, 36, seed=3, size=64, n_per_generator=20)
