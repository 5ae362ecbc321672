import jupytext
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mtlib.scenes import clip_path
from mtlib.scenes import clip_training as terms
from mtlib.scenes.causes import CAUSES
from mtlib.scenes.clip_training import caption_loss, scene_losses
from mtlib.scenes.dataset import FAMILIES, Spec, render

SMALL = dict(clip_steps=4, clip_scenes=16, clip_batch=16, clip_threads=1, clip_save_every=2, clip_test_scenes=270)


def run_cells(repo, run_dir, last="stage.finish(", **params):
    """Run the notebook in this process, with other parameters, up to the cell that holds `last`; returns its names."""
    names = {"__name__": "__main__"}
    for cell in jupytext.read(repo / "notebooks" / "train_clip.py").cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "train_clip", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= params | {"run_dir": str(run_dir)}
            if last in cell.source:
                break
    return names


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


def test_report_card_covers_every_cause_and_its_readme_repeats_it():
    card = pd.read_csv(clip_path() / "report_card.csv").set_index(["encoder", "cause"])
    assert set(card.index) == {(encoder, cause) for encoder in ("bundled", "told") for cause in CAUSES}
    lines = (clip_path() / "README.md").read_text().splitlines()
    for cause, about in CAUSES.items():
        row, before = card.loc["bundled", cause], card.loc["told", cause]
        assert row["captioned"] == about["captioned"]
        line = next(x for x in lines if x.startswith(f"| {cause} |"))
        assert f"| {row['probe_accuracy']:.3f} ({before['probe_accuracy']:.3f}) |" in line
    means = card.groupby("encoder")[["probe_accuracy", "zero_shot_family"]].mean().loc["bundled"]
    assert means["probe_accuracy"] >= 0.9 and means["zero_shot_family"] >= 0.95


def test_caption_loss_of_perfect_logits_is_the_entropy_of_the_positives():
    true = torch.tensor([[True, True], [True, True]])
    assert caption_loss(torch.zeros(2, 2), true).item() == pytest.approx(np.log(2))
    assert caption_loss(100 * torch.eye(2), torch.eye(2, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-6)


def test_scene_losses_fall_when_twins_part():
    apart = torch.eye(4)[[0, 0, 1, 1]]
    together = torch.eye(4)[[0, 0, 0, 0]]
    assert scene_losses(apart)[1] < 0.01 < scene_losses(together)[1]
    assert scene_losses(together)[1].item() == pytest.approx(np.log(3))


@pytest.mark.slow
def test_training_that_is_stopped_and_continued_is_exactly_training_in_one_go(repo, tmp_path, monkeypatch):
    whole = run_cells(repo, tmp_path / "one", **SMALL)
    again, calls = terms.scene_losses, []

    def interrupted(h):
        calls.append(h)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return again(h)

    monkeypatch.setattr(terms, "scene_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cells(repo, tmp_path / "two", **SMALL)
    monkeypatch.setattr(terms, "scene_losses", again)
    continued = run_cells(repo, tmp_path / "two", "clip_save_every == 0", **SMALL)
    assert continued["first"] == 2 and continued["history"] == whole["history"] and len(whole["history"]) == 4
    one, two = whole["clip"].state_dict(), continued["clip"].state_dict()
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    card = whole["card"]
    assert set(card["encoder"]) == {"bundled", "trained here"} and set(card["cause"]) == set(CAUSES)
    assert (whole["stage"].out / "clip" / "open_clip_model.safetensors").is_file()


def test_augmented_pictures_keep_their_shape_and_repeat(repo, tmp_path):
    augmented = run_cells(repo, tmp_path, "def augmented", **SMALL)["augmented"]
    x = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    a, b = (augmented(x, np.random.default_rng(1)) for _ in range(2))
    assert a.shape == (5, 3, 64, 64) and torch.equal(a, b)
    assert not torch.equal(a[0], (torch.from_numpy(x[0]).permute(2, 0, 1) / 255 - 0.5) / 0.25)
