"""Zero-shot accuracy before and after the splice: by hand, against scikit-learn, and for every kind of data."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from mtlib.embed import store
from mtlib.measure.zero_shot import ZeroShot, ZeroShotDrop, zero_shot_task
from tests import synthetic


def task(texts, truth):
    texts = torch.as_tensor(np.asarray(texts, float))
    return ZeroShot(
        texts / texts.norm(dim=1, keepdim=True), [str(i) for i in range(len(texts))], np.asarray(truth), "made up"
    )


def test_drop_hand_computed():
    t = task([[1, 0], [0, 1]], [0, 0, 1, 1, -1])
    x = torch.tensor([[2.0, 0.1], [1.0, 0.5], [0.0, 3.0], [0.1, 0.2], [1.0, 1.0]])  # all right; the last has no truth
    x_hat = torch.tensor([[2.0, 0.1], [0.1, 0.5], [0.0, 3.0], [0.0, 0.0], [1.0, 1.0]])  # one flips, one vanishes
    drop = ZeroShotDrop(t)
    drop.update(np.arange(5), x, x_hat)
    got = drop.result()
    assert (drop.n, got["zero_shot_top1"], got["zero_shot_top1_spliced"]) == (4, 1.0, 0.5)
    assert got["zero_shot_drop"] == 50.0 and np.isnan(got["zero_shot_drop_top5"])  # two classes have no top five


def test_hits_equal_sklearn_and_do_not_depend_on_norms_or_batches():
    rng = np.random.default_rng(0)
    x, texts = rng.normal(size=(200, 6)), rng.normal(size=(9, 6))
    score = x @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    truth = np.where(rng.random(200) < 0.8, score.argmax(1), rng.integers(0, 9, 200))
    t = task(texts, truth)
    hits = t.hits(torch.from_numpy(x), np.arange(200))
    for i, k in enumerate((1, 5)):
        assert hits[:, i].mean() == pytest.approx(top_k_accuracy_score(truth, score, k=k, labels=range(9)))
    scaled = t.hits(torch.from_numpy(x * rng.uniform(0.1, 10, (200, 1))), np.arange(200))
    np.testing.assert_array_equal(hits, scaled)
    one, many = ZeroShotDrop(t), ZeroShotDrop(t)
    noisy = torch.from_numpy(x + rng.normal(size=x.shape))
    one.update(np.arange(200), torch.from_numpy(x), noisy)
    for some in np.array_split(np.arange(200), 7):
        many.update(some, torch.from_numpy(x[some]), noisy[some])
    assert many.result() == pytest.approx(one.result())
    assert one.result()["zero_shot_drop"] > 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    synthetic.write_embed_stage(folder, 200, 16, images=False)
    return store.open_run(folder)


def test_scenes_choose_among_families(data):
    phrases = data.phrases.assign(kind=data.phrases["kind"].replace("normal", "object"))
    families = store.Data(**{**vars(data), "phrases": phrases})
    got, why = zero_shot_task(families)
    assert why == "" and got.names == sorted(synthetic.FAMILIES)
    assert [got.names[i] for i in got.truth] == data.truth["family"].tolist()
    assert zero_shot_task(data) == (None, "no phrase names a family")


def test_class_folders_use_the_encoder(data):
    class Tower:
        tokenizer = str

        def encode_texts(self, texts):
            self.texts = texts
            return np.eye(len(texts), 16)

    tower = Tower()
    facts = data.facts | {"labels": "classes", "class_names": list(synthetic.FAMILIES)}
    folders = store.Data(**{**vars(data), "truth": None, "facts": facts})
    got, _ = zero_shot_task(folders, lambda: tower)
    assert tower.texts[0] == "a photo of a hand"
    assert [got.names[i] for i in got.truth] == data.manifest["class_name"].tolist()
    assert zero_shot_task(folders)[0] is None


def test_arrays_choose_among_the_words_of_the_vocabulary(data):
    phrases = pd.DataFrame({"phrase": ["bow (1)", "bow (2)", "Cup"], "kind": "word", "family": "", "cause": ""})
    manifest = data.manifest.assign(class_name=["bow", "cup", "door", *[""] * (len(data.manifest) - 3)])
    rest = {"truth": None, "facts": data.facts | {"labels": "none"}, "vocabulary": np.eye(3, 16), "phrases": phrases}
    arrays = store.Data(**{**vars(data), "manifest": manifest, **rest})
    got, _ = zero_shot_task(arrays)
    assert got.names == ["bow", "cup"] and got.truth[:4].tolist() == [0, 1, -1, -1]  # two senses are one word
    np.testing.assert_allclose(got.texts[0, :3], [2**-0.5, 2**-0.5, 0])
    elsewhere = store.Data(**{**vars(arrays), "manifest": manifest.assign(class_name="door")})
    assert zero_shot_task(elsewhere)[1] == "no row's name is a word of the vocabulary"
