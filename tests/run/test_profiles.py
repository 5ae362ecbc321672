"""What a profile leaves to be given."""

import pytest

from mtlib.embed.sources import EmbedConfig
from mtlib.run import params, profiles


def test_a_profile_that_takes_images_or_embeddings_asks_for_one_of_them():
    asked = ["images", "embeddings", "vocabulary"]
    assert profiles.not_given(asked, {}) == asked
    assert profiles.not_given(asked, {"images": "a"}) == ["vocabulary"]
    assert profiles.not_given(asked, {"embeddings": "a", "vocabulary": "b"}) == []
    assert profiles.not_given(["embeddings"], {"images": "a"}) == ["embeddings"]


@pytest.mark.parametrize("profile", ["msae", "monoloss", "monoloss_siglip2", "monoloss_vit", "monoloss_openimages"])
def test_published_profiles_run_on_images_or_embeddings(profile, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    (tmp_path / "x.npy").write_bytes(b"x")
    for given in ({"images": str(tmp_path)}, {"embeddings": str(tmp_path / "x.npy")}):
        values = profiles.load_params(profile, False, given, profiles.Places())
        assert values["01_embed"] | given == values["01_embed"]
        assert values["03_train"]["n_latents"] == values["03_train"]["steps"] == 0  # as published
    with pytest.raises(params.ParamsError, match="images is yours to give"):
        profiles.load_params(profile, False, {}, profiles.Places())


def test_scenes_are_images_that_can_be_asked_for_by_name():
    given = {"images": "scenes", "encoder": "demo", "pretrained": "", "judge": "keyless"}
    values = profiles.load_params("matryoshka_transcoders", False, given, profiles.Places())
    assert values["01_embed"]["images"] == "scenes" and values["03_train"]["n_latents"] == 0  # as published
    assert EmbedConfig(images="scenes").source == EmbedConfig().source == "scenes"
    assert EmbedConfig(images="./scenes", encoder="demo").source == "images"
    with pytest.raises(FileNotFoundError, match="label_images = scenes: no such file"):
        profiles.load_params("demo", False, {"label_images": "scenes"}, profiles.Places())
