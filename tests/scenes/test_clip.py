import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from mtlib.scenes import clip_path
from mtlib.scenes.clip_losses import caption_loss, scene_losses
from mtlib.scenes.dataset import CAUSES, FAMILIES, Spec, render
from mtlib.scenes.report_card import card, readme
from mtlib.scenes.train_clip import augment, main


@pytest.fixture(scope="module")
def clip():
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_path()}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{clip_path()}")


def test_bundled_clip_loads_in_float32_and_embeds(clip):
    model, preprocess, tokens = clip
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        x = model.encode_image(torch.stack([preprocess(render(Spec(i, "face"))[0]) for i in range(3)]))
        t = model.encode_text(tokens(["a face", "a hand"]))
    assert x.shape == (3, t.shape[1]) and bool(x.isfinite().all()) and bool(t.isfinite().all())


def test_bundled_clip_names_families_better_than_chance(clip):
    model, preprocess, tokens = clip
    images = torch.stack([preprocess(render(Spec(i, f))[0]) for f in FAMILIES for i in range(4)])
    names = [
        "a hand",
        "a face",
        "a person",
        "an animal",
        "things on a table",
        "a sun and a shadow",
        "a glass of liquid",
        "a stack of blocks",
        "a reflection in water",
    ]
    with torch.inference_mode():
        guess = (
            model.encode_image(images) @ torch.nn.functional.normalize(model.encode_text(tokens(names)), dim=-1).T
        ).argmax(1)
    assert (guess.numpy() == np.repeat(np.arange(9), 4)).mean() > 0.5


def test_bundled_files_are_small_and_half_precision():
    files = [clip_path() / "open_clip_config.json", clip_path() / "open_clip_model.safetensors"]
    assert sum(f.stat().st_size for f in files) <= 15_000_000
    assert {t.dtype for t in load_file(files[1]).values() if t.is_floating_point()} == {torch.float16}


def test_report_card_is_written_and_matches_its_readme():
    result = json.loads((clip_path() / "report_card.json").read_text())
    assert set(result["families"]) == set(FAMILIES)
    assert [f for f, r in result["families"].items() if not r["captioned"]] == [
        v["family"] for v in CAUSES.values() if not v["captioned"]
    ]
    assert (clip_path() / "README.md").read_text() == readme(result)


def test_report_card_runs_on_few_scenes():
    result = card(clip_path(), 180)
    assert result["n_test"] == 60 and 0 <= result["probe_accuracy"] <= 1


def test_caption_loss_of_perfect_logits_is_the_entropy_of_the_positives():
    true = torch.tensor([[True, True], [True, True]])
    assert caption_loss(torch.zeros(2, 2), true).item() == pytest.approx(np.log(2))
    assert caption_loss(100 * torch.eye(2), torch.eye(2, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-6)


def test_scene_losses_fall_when_twins_part():
    apart = torch.eye(4)[[0, 0, 1, 1]]
    together = torch.eye(4)[[0, 0, 0, 0]]
    assert scene_losses(apart)[1] < 0.01 < scene_losses(together)[1]
    assert scene_losses(together)[1].item() == pytest.approx(np.log(3))


def test_augment_keeps_shape_and_repeats():
    x = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    a, b = (augment(x, np.random.default_rng(1)) for _ in range(2))
    assert a.shape == x.shape and (a == b).all() and (a != x).any()


def test_training_that_is_stopped_and_continued_is_exactly_training_in_one_go(tmp_path):
    common = ["--steps", "4", "--scenes", "16", "--batch", "16", "--threads", "1", "--save-every", "2"]

    def train(out, *more):
        main(["--out", str(out), *common, *more])

    train(tmp_path / "one")
    train(tmp_path / "two", "--stop-after", "2")
    assert json.loads((tmp_path / "two" / "training.json").read_text())["finished"] is False
    train(tmp_path / "two")
    one, two = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("one", "two"))
    assert one["step"] == two["step"] == 4
    assert all(torch.equal(v, two["model"][k]) for k, v in one["model"].items())
