"""The strongest features of a token, by hand: codes are the rows themselves."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.embed.store import Data
from mtlib.features.token_maps import token_figure, token_map


class Itself:
    """A coder whose codes are its inputs."""

    @staticmethod
    def encode(x):
        return x.clamp_min(0)


def tokens(n_images: int = 2, height: int = 2, width: int = 3, first: int = 0, d: int = 4) -> Data:
    per = first + height * width
    x = np.zeros((n_images * per, d), np.float32)
    facts = {"tokens_per_image": per, "token_grid": [height, width], "first_patch": first}
    return Data(x, pd.DataFrame({"path": [""] * len(x)}), x[:0], pd.DataFrame(), facts)


def test_map_holds_each_feature_at_every_place_the_strongest_first():
    data = tokens()
    data.x[6 + 4] = [0.5, 0.0, 2.0, 1.0]  # image 1, row 1, column 1
    data.x[6 + 2] = [0.0, 0.0, 3.0, 0.0]  # image 1, row 0, column 2
    found = token_map(Itself, data, 1)
    assert (found.row, found.place) == (10, (1, 1)), "the token with the largest sum"
    assert found.features.tolist() == [2, 3, 0], "feature 1 does not fire"
    assert found.activations[0].tolist() == [[0, 0, 3], [0, 2, 0]]
    assert found.table["activation"].tolist() == [2, 1, 0.5]
    assert found.table["fires_on"].tolist() == pytest.approx([2 / 6, 1 / 6, 1 / 6])
    assert token_map(Itself, data, 1, n=2).features.tolist() == [2, 3]


def test_place_can_be_chosen_and_tokens_before_the_patches_are_passed_over():
    data = tokens(first=1)
    data.x[7] = 9  # the class token of image 1
    data.x[7 + 1 + 2] = [0, 7, 0, 0]
    found = token_map(Itself, data, 1, place=(0, 2))
    assert found.row == 10
    assert found.table[["feature", "activation"]].to_numpy().tolist() == [[1, 7]]
    assert token_map(Itself, data, 0, place=(1, 0)).features.tolist() == []


def test_no_grid_no_such_image_and_no_such_place_are_refused():
    data = tokens()
    with pytest.raises(ValueError, match="image = 2: there are 2 images"):
        token_map(Itself, data, 2)
    with pytest.raises(ValueError, match="the grid is 2 x 3"):
        token_map(Itself, data, 0, place=(2, 0))
    data.facts["token_grid"] = [0, 0]
    with pytest.raises(ValueError, match="no tokens on a grid"):
        token_map(Itself, data, 0)


def test_figure_has_the_image_and_a_map_per_feature_in_its_place():
    data = tokens()
    data.x[4] = [1, 2, 0, 0]
    model = SimpleNamespace(config=SimpleNamespace(centres=[20, 40, 60]))
    fig = token_figure(token_map(Itself, data, 0), Image.new("RGB", (60, 60)), model)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == ["token at row 1, column 1", "1: feature 1, 2 of 2", "2: feature 0, 1 of 1"]
    frame = fig.axes[0].patches[0]
    assert (frame.get_x(), frame.get_y(), frame.get_width()) == (30, 30, 20)
