"""Whole sources to finished embeddings: folders, class folders, arrays, rendered scenes, and the real data beside the repository."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mtlib.embed import arrays, sources, store
from mtlib.embed.arrays import names_beside
from mtlib.embed.given.words import phrases
from mtlib.embed.manifest import InputError
from mtlib.embed.sources import EmbedConfig
from mtlib.measure.probes import encoder_card
from mtlib.run.artifacts import ArtifactError
from mtlib.scenes.causes import CAUSES
from mtlib.scenes.dataset import twins


def embed_folder(tiny, folder, out, truth=None, **options):
    config = EmbedConfig(
        images="" if truth is not None else str(folder), **{"batch_size": 64, "encoder": "demo"} | options
    )
    _, facts = sources.from_images(config, tiny, folder, out, truth)
    return store.load_parts(out, facts)


def test_scenes_become_rows_with_truth_and_a_card(tiny, tmp_path):
    config = EmbedConfig(n_scenes=180, n_per_generator=3, workers=1, batch_size=64)
    truth = sources.render_scenes(config, tmp_path)
    data = embed_folder(tiny, tmp_path / "images", tmp_path, truth, n_scenes=180, n_per_generator=3)
    assert len(data.x) == len(truth) == len(data.files) and data.facts["labels"] == "plausibility"
    labelled = data.labels() >= 0
    assert np.array_equal(data.labels()[labelled], data.truth["label"].to_numpy()[labelled])
    assert (
        set(data.manifest["split"][~labelled])
        == {"unlabelled"}
        == set(data.manifest.loc[data.manifest["generator"] != "", "split"])
    )
    table = encoder_card(data)
    assert table["family"].tolist()[0] == "all" and len(table) == 10 and table["probe_accuracy"].between(0, 1).all()
    assert table["n_test"].iloc[0] == table["n_test"].iloc[1:].sum() == len(data.rows("test"))
    assert table.set_index("cause")["captioned"].drop("").to_dict() == {c: CAUSES[c]["captioned"] for c in CAUSES}
    assert {"images", "labels", "pictures", "scenes", "text", "tower", "truth"} < set(sources.provided(data))
    before = (tmp_path / "images" / truth["path"][0]).stat().st_mtime_ns
    sources.render_scenes(config, tmp_path)
    assert (tmp_path / "images" / truth["path"][0]).stat().st_mtime_ns == before  # a killed run does not draw again
    images, shown = twins(truth, 2)
    assert [len(line) for line in images.values()] == [4] * 9 and set(shown["cause"]) == set(images) == set(CAUSES)


def test_card_finds_what_is_planted(tiny, tmp_path):
    from tests.synthetic import write_embed_stage

    data = store.load_data(write_embed_stage(tmp_path, 1200))
    table = encoder_card(data).set_index("family")
    assert (table["probe_auroc"].drop("all") > 0.95).all()
    folds = encoder_card(replace(data, truth=None))
    low, middle, high = folds.loc[0, ["accuracy_low", "probe_accuracy", "accuracy_high"]]
    assert 0.9 < low < middle <= high <= 1


def test_flat_folder_and_bad_files_end_in_reasons(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:02d}.png")
    (folder / "bad.jpg").write_bytes(b"<html>")
    data = embed_folder(tiny, folder, tmp_path / "out")
    assert data.facts["labels"] == "none" and data.facts["n_bad"] == 1 and len(data.x) == 12
    assert data.files.set_index("path").loc["bad.jpg", "status"] == "not an image"
    for path in folder.glob("0*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"84\.6% of 13 files are bad.*10 empty"):
        embed_folder(tiny, folder, tmp_path / "out2")
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="no file could be embedded: 13 empty"):
        embed_folder(tiny, folder, tmp_path / "out3", max_bad_fraction=1.0)


def test_a_folder_without_images_is_no_class_of_the_photographs_beside_it(tiny, tmp_path):
    (tmp_path / "in" / "checkpoints").mkdir(parents=True)
    (tmp_path / "in" / "checkpoints" / "coder.pth").write_bytes(b"no image")
    for i in range(12):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "in" / f"{i:02d}.png")
    data = embed_folder(tiny, tmp_path / "in", tmp_path / "out")
    assert data.facts["labels"] == "none" and set(data.manifest["split"]) == {"train", "val", "test"}


def test_a_file_that_changed_later_is_not_shown_as_if_it_were_embedded(tiny, tmp_path):
    from mtlib.embed.images import ImageRefused

    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    data = embed_folder(tiny, folder, tmp_path / "out")
    assert data.thumbnail(1, 16).size == (16, 16)
    shutil.copy(folder / "0.png", folder / "1.png")
    with pytest.raises(ImageRefused, match="changed"):
        data.thumbnail(1)


@pytest.mark.parametrize(
    ("options", "say"),
    [
        ({"images": "a", "embeddings": "b"}, "choose one"),
        ({"vocabulary": "v.npy"}, "goes with embeddings"),
        ({"embeddings": "x.npy", "vocabulary_names": "n.txt"}, "goes with vocabulary"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction = 1.5"),
        ({"engine": "spark"}, "engine = 'spark': should be 'local', 'processes' or 'ray'"),
        ({"splits": [0.5, 0.5]}, "three shares"),
        ({"images": "photos"}, "needs an encoder: a CLIP of the web .* or encoder = demo"),
    ],
)
def test_config_out_of_range_is_refused(options, say):
    with pytest.raises(ValueError, match=say):
        EmbedConfig(**options)


def write_arrays(folder, n=30, v=12, d=6):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    texts = rng.normal(size=(v, d))
    np.save(folder / "v.npy", texts.astype(np.float32))
    np.save(folder / "x.npy", np.concatenate([texts, rng.normal(size=(n - v, d))]))
    words = [f"word {i}" for i in range(v - 1)] + ["word 0"]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    (folder / "names.txt").write_text("\n".join(["WORD 0", *words[1:-1], "other"] + ["thing"] * (n - v)) + "\n")


def test_arrays_give_rows_names_and_a_word_card(tmp_path):
    write_arrays(tmp_path)
    config = EmbedConfig(embeddings="x.npy", vocabulary="v.npy")
    manifest, facts = sources.from_arrays(config, tmp_path, tmp_path / "out")
    data = store.load_parts(tmp_path / "out", facts)
    assert data.x.dtype == np.float32 and data.images(0) is None and facts["labels"] == "none"
    assert (
        data.caption(3) == "word 3" and manifest["path"].is_unique and data.phrases["phrase"].iloc[-1] == "word 0 (2)"
    )
    table = encoder_card(data)
    assert table.loc[0, "n_test"] == 11 and table.loc[0, "zero_shot_family"] == 1.0 == table.loc[0, "zero_shot_top5"]


def test_arrays_without_fitting_names_are_refused(tmp_path):
    write_arrays(tmp_path)
    bad = {"nan.npy": np.full((3, 6), np.nan), "int.npy": np.ones((3, 6), int), "wide.npy": np.ones((12, 7))}
    for name, value in bad.items():
        np.save(tmp_path / name, value)
    for options, say in [
        ({"embeddings": "none.npy"}, "no such file"),
        ({"embeddings": "nan.npy"}, "row 0 holds NaN"),
        ({"embeddings": "int.npy"}, "floating-point"),
        ({"embeddings": "x.npy", "vocabulary": "wide.npy"}, r"shape \(12, 7\), the embeddings are 6 wide"),
        ({"embeddings": "x.npy", "vocabulary": "v.npy", "vocabulary_names": "names.txt"}, "30 lines for 12 rows"),
        ({"embeddings": "x.npy", "vocabulary": "v.npy", "vocabulary_names": "gone.txt"}, "no such file"),
    ]:
        with pytest.raises(InputError, match=say):
            sources.from_arrays(EmbedConfig(**options), tmp_path, tmp_path / "out")
    (tmp_path / "words.txt").rename(tmp_path / "words.md")
    with pytest.raises(InputError, match=r"no \.txt beside it has 12 lines"):
        sources.from_arrays(EmbedConfig(embeddings="x.npy", vocabulary="v.npy"), tmp_path, tmp_path / "out")
    shutil.copy(tmp_path / "words.md", tmp_path / "a.txt")
    shutil.copy(tmp_path / "words.md", tmp_path / "b.txt")
    with pytest.raises(InputError, match=r"2 text files beside it have 12 lines \(a.txt, b.txt\); call one v.txt"):
        sources.from_arrays(EmbedConfig(embeddings="x.npy", vocabulary="v.npy"), tmp_path, tmp_path / "out")
    (tmp_path / "b.txt").rename(tmp_path / "v.txt")  # of the file's own name: no doubt
    assert names_beside(tmp_path / "v.npy", 12).name == "v.txt"


def test_packaged_phrases_are_unique_and_of_known_kinds():
    table, templates = phrases("images")
    assert (
        150 <= len(table) <= 250
        and table["phrase"].is_unique
        and set(table["kind"]) == {"error", "normal", "object", "nuisance"}
    )
    assert table.loc[table["kind"] == "error", "category"].nunique() == 8 and templates[0] == "{}"


def test_phyvib_folder_gives_labels_folds_and_a_caveat(tiny, tmp_path, shared_data):
    data = embed_folder(tiny, shared_data("phyvib"), tmp_path, batch_size=128)
    labels = data.labels()
    assert (len(labels), (labels == 0).sum(), (labels == 1).sum()) == (201, 78, 123) and data.facts["n_bad"] == 0
    table = encoder_card(data)
    assert table.loc[0, "n_test"] == len(data.rows("all")) and len(table) == 15
    assert {"folder", "images", "labels", "classes", "pictures", "text", "tower"} <= set(sources.provided(data))


def test_cifar_class_folders_give_classes(tiny, tmp_path, shared_data):
    data = embed_folder(tiny, shared_data("cifar10") / "train", tmp_path, max_images=200)
    assert data.facts["labels"] == "classes" and len(data.facts["class_names"]) == 10 and len(data.x) == 200
    assert data.manifest["class_name"].value_counts().between(18, 22).all() and len(data.files) == 4000
    table = encoder_card(data, lambda: tiny)
    assert len(table) == 11 and table["zero_shot_family"].between(0, 1).all() and "labels" not in sources.provided(data)
    lines = data.sample(n_lines=4, n_columns=3)
    assert len(lines) == 4 and all((data.manifest["class_name"][rows] == name).all() for name, rows in lines.items())


def test_things_arrays_reproduce_the_known_zero_shot_rates(tmp_path, shared_data):
    folder = shared_data("things_clip_vitb32")
    config = EmbedConfig(embeddings="image_embeddings.npy", vocabulary="text_embeddings.npy")
    manifest, facts = sources.from_arrays(config, folder, tmp_path)
    data = store.load_parts(tmp_path, facts)
    assert data.x.shape == (1854, 512) and len(data.phrases) == 1203 and data.caption(0) == "aardvark"
    table = encoder_card(data)
    assert table.loc[0, "n_test"] == 622
    rates = table.loc[0, ["zero_shot_family", "zero_shot_top5"]].to_numpy(float)
    assert (
        np.abs(rates - [0.621, 0.889]).max() < 0.002
    )  # known for first senses only; here all five doubled words count
    assert arrays.names_beside(folder / "image_embeddings.npy", len(manifest)).name == "image_concepts.txt"


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        ({"human_correct": 20, "human_error": 1}, "1 different images are implausible, folds need at least 5 of each"),
        ({"human_correct": 3, "human_error": 3}, "3 different images are plausible, folds need at least 5 of each"),
        ({"human_correct": 1, "human_error": 1}, "1 different images are plausible"),
        ({"cat": 1, "dog": 1}, "fewer than two classes among train images"),
        ({"cat": 30, "dog": 1}, ""),
        ({"cat": 5}, None),
        ({"": 3}, None),
    ],
)
def test_little_data_leave_the_card_empty_with_the_reason(tiny, tmp_path, folders, note):
    for value, (name, n) in enumerate(folders.items()):
        (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (9 * i, 99 * value, 0)).save(tmp_path / "in" / name / f"{i}.png")
    data = embed_folder(tiny, tmp_path / "in", tmp_path / "out")
    card = encoder_card(data, lambda: tiny)
    if note is None:
        assert card["n_test"].tolist() == [0]
    elif note:
        assert note in card["note"].iloc[0] and card["probe_accuracy"].isna().all()  # no answer is no accuracy of 0
    else:
        assert "note" not in card and card["probe_accuracy"].iloc[0] > 0.5
    assert ("trainable" in sources.provided(data)) == (sum(folders.values()) > 2)
