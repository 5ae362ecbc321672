"""How unlike the run's images an image is: the distance to its nearest ones, and what it takes for unlike."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mtlib.embed.encoders import Encoder
from mtlib.embed.images import load_image
from mtlib.features.familiar import Familiar
from mtlib.scenes import clip_path
from mtlib.scenes.dataset import plan, render


def test_the_distance_is_that_of_the_fifth_nearest_unit_row_over_its_limit(tmp_path):
    rng = np.random.default_rng(0)
    train, val, other = rng.normal(size=(60, 8)), rng.normal(size=(50, 8)), rng.normal(size=(7, 8))
    usual = Familiar.fit(train, val)

    def plain(x):
        unit = [w / np.linalg.norm(w, axis=1, keepdims=True) for w in (x, train)]
        return np.sort(np.linalg.norm(unit[0][:, None] - unit[1], axis=2), axis=1)[:, 4]

    assert np.allclose(usual.distance(other), plain(other) / np.quantile(plain(val), 0.98), atol=2e-3)
    assert (usual.distance(val) > 1).sum() == 1  # 2% of 50
    usual.save(tmp_path)
    assert np.array_equal(Familiar.load(tmp_path).distance(other), usual.distance(other))
    assert Familiar.fit(train[:49], val) is Familiar.load(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["phyvib", "cifar10"])
def test_the_bundled_encoder_tells_photographs_from_its_drawings(name, shared_data):
    folder, usual, tower = shared_data(name), Familiar.load(clip_path()), Encoder.load("demo")
    files = [f for f in sorted(folder.rglob("*.jpg"))][:: 1 if name == "phyvib" else 25]
    photographs = usual.distance(tower.encode_images([load_image(f)[0] for f in files]))
    scenes = usual.distance(tower.encode_images([render(spec)[0] for _, spec, _ in plan(450, 11, 0)]))
    told = roc_auc_score(np.r_[np.zeros(len(scenes)), np.ones(len(photographs))], np.r_[scenes, photographs])
    assert told > 0.97 and (scenes > 1).mean() <= 0.05 and (photographs > 1).mean() > 0.7
