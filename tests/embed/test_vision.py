"""The AlexNet-Transformer: published shapes, the stream after a block by hook, learning, resuming, rows and places."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mtlib.coders.config import SparseCoderConfig
from mtlib.embed import store, vision
from mtlib.embed.encoders import Encoder, EncoderError
from mtlib.embed.sources import EmbedConfig, from_images
from mtlib.embed.vision import AlexNetTransformer, VisionConfig
from mtlib.learn import loop
from mtlib.learn import vision as learn_vision
from mtlib.learn.config import MethodsConfig, TrainConfig, VisionTraining
from mtlib.learn.vision import fit_vision, load_vision
from mtlib.run import profiles
from mtlib.run.artifacts import ArtifactError, sha256
from tests.parity import alexnet_model

SMALL = VisionConfig(n_classes=2, variant="positions", blocks=2, heads=4, dropout=0.1, layer=1, side=95)  # 2 x 2 tokens
OURS = VisionTraining(vision_variant="positions")
TRAINING = OURS.with_(vision_epochs=2, vision_batch=3)  # 4 steps
PUBLISHED = [  # what each convolution and pooling gives for 224 x 224 pixels
    *((96, 55), (96, 27), (256, 27), (256, 13)),
    *((384, 13), (384, 13), (256, 13), (256, 6)),
]


def pictures(n: int = 8, side: int = 95, seed: int = 0):
    """Noise, brighter for class 1. Returns: pixels (n, 3, side, side) uint8; labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    noise = rng.integers(0, 120, (n, 3, side, side))
    return (noise + 120 * labels[:, None, None, None]).astype(np.uint8), labels


def fit(folder, training):
    pixels, labels = pictures()
    return fit_vision(SMALL, pixels, labels, np.arange(6), np.arange(6, 8), training, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, TRAINING)
    return folder


@pytest.fixture(scope="module")
def published():
    return AlexNetTransformer(VisionConfig(n_classes=10)).eval()


def test_every_stage_has_its_published_shape(published):
    shapes, x = [], torch.zeros(1, 3, 224, 224)
    for module in published.features:
        x = module(x)
        if isinstance(module, (torch.nn.Conv2d, torch.nn.MaxPool2d)):
            shapes.append((x.shape[1], x.shape[2]))
    assert shapes == PUBLISHED
    convolutions = [m for m in published.features if isinstance(m, torch.nn.Conv2d)]
    assert [m.groups for m in convolutions] == [1, 2, 1, 2, 2]
    assert [i for i, m in enumerate(published.features) if isinstance(m, torch.nn.BatchNorm2d)] == [2, 6]
    assert all(m.bias is not None for m in convolutions) and published.positions is None
    assert sum(p.numel() for p in published.parameters()) == 15_051_338
    assert len(published.blocks) == 16
    assert {(b.self_attn.num_heads, b.dropout.p) for b in published.blocks} == {(16, 0.5)}
    assert published.head.in_features == 36 * 256
    assert published.head.out_features == 10


def test_hook_gives_36_tokens_of_256_after_block_6(published):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8))
    layer = published.layer()
    with torch.inference_mode(), layer.recorded() as seen:
        published(pixels)
    with torch.no_grad():
        stream = published.blocks[:7](published.tokens(pixels))  # blocks 0 to 6
    assert layer.name == "blocks.6"
    assert seen[0].shape == (2, 36, 256)
    assert torch.allclose(seen[0], stream, atol=1e-5)
    assert layer.facts["token_grid"] == [6, 6]


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_passes_gradients_where_it_keeps(p):
    torch.manual_seed(0)
    x = torch.ones(301, 997, requires_grad=True)
    y = vision.dropout(x, p)
    y.sum().backward()
    assert abs((y == 0).float().mean() - p) < 0.003, "p to 1 / 256 and five standard errors"
    assert abs(y.mean() - 1) < 0.005
    assert torch.equal(x.grad, y)
    assert not torch.equal(y, vision.dropout(x, p))


def test_blocks_without_dropout_are_those_of_torch():
    """Training goes by our forward, evaluation by PyTorch's: outputs and gradients agree."""
    torch.manual_seed(0)
    block, x = vision.Block(32, 4, 0.0), torch.randn(3, 5, 32)
    ours = block.train()(x)
    ours.square().sum().backward()
    grads = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    theirs = torch.nn.TransformerEncoderLayer.forward(block, x)  # with biases of 0, which change nothing
    theirs.square().sum().backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(block.eval()(x), theirs, atol=1e-5)
    for grad, p in zip(grads, block.parameters(), strict=True):
        assert torch.allclose(grad, p.grad, rtol=1e-4, atol=1e-4)


def test_replacing_the_stream_by_itself_changes_nothing_and_by_zeros_everything(published):
    pixels = torch.full((1, 3, 224, 224), 77, dtype=torch.uint8)
    layer = published.layer()
    with torch.inference_mode():
        plain = published(pixels)
        with layer.replaced(lambda x: x):
            same = published(pixels)
        with layer.replaced(torch.zeros_like):
            other = published(pixels)
    assert torch.allclose(plain, same, atol=1e-5)
    assert not torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize("variant", ["published", "positions"])
def test_token_number_is_its_place_row_by_row(variant):
    """A patch painted at one place of the grid changes the token of that place most."""
    model = AlexNetTransformer(VisionConfig(n_classes=2, variant=variant, blocks=1, layer=0, side=224)).eval()
    for row, column in ((0, 0), (1, 4), (5, 2)):
        pixels = torch.full((2, 3, 224, 224), 120, dtype=torch.uint8)
        y, x = model.config.centres[row], model.config.centres[column]
        pixels[1, :, y - 12 : y + 12, x - 12 : x + 12] = 255
        with torch.inference_mode():
            one, two = model.tokens(pixels)
        assert int((one - two).norm(dim=1).argmax()) == 6 * row + column


def test_overfits_one_batch(tmp_path):
    pixels, labels = pictures()
    model, history = fit(tmp_path, OURS.with_(vision_epochs=8, vision_batch=6, vision_lr=1e-3))
    assert history["train_loss"].iloc[-1] < 0.1 < history["train_loss"].iloc[0]
    with torch.inference_mode():
        assert (model(torch.from_numpy(pixels)).argmax(1).numpy() == labels).all()
    best = json.loads((tmp_path / "config.json").read_text())["best"]
    assert best["loss"] == history["val_loss"].min()
    again = load_vision(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_stopped_training_goes_on_to_the_same_bytes(tmp_path, whole, monkeypatch):
    steps, save = [], loop.save

    def save_and_stop(*args):
        save(*args)
        steps.append(args[-1]["step"])
        if len(steps) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, TRAINING.with_(checkpoint_steps=3))
    assert not (tmp_path / "weights.safetensors").exists()
    fit(tmp_path, TRAINING.with_(checkpoint_steps=3))
    assert steps == [3], "it went on from step 3 of 4"
    for name in ("weights.safetensors", "history.parquet"):
        assert sha256(tmp_path / name) == sha256(whole / name), name
    assert not (tmp_path / "checkpoint").exists()


def test_another_seed_gives_other_weights(tmp_path, whole):
    fit(tmp_path, TRAINING.with_(seed=1))
    assert sha256(tmp_path / "weights.safetensors") != sha256(whole / "weights.safetensors")


def test_finished_training_is_loaded_not_repeated(whole, monkeypatch):
    monkeypatch.setattr(loop.Loop, "run", lambda self, label: pytest.fail("trained again"))
    model, history = fit(whole, TRAINING)
    assert len(history) == TRAINING.vision_epochs
    assert not model.training


def write_images(folder: Path, n: int = 5) -> store.Data:
    """n images of one colour each, as one would find them, and their Data with one row per image."""
    folder.mkdir()
    for i in range(n):
        Image.new("RGB", (40 + i, 60), (40 * i, 10, 200)).save(folder / f"{i}.png")
    names = [f"{i}.png" for i in range(n)]
    manifest = pd.DataFrame({"path": names, "sha256": [sha256(folder / name) for name in names], "class_name": "a"})
    x = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    return store.Data(x, manifest, x[:0], pd.DataFrame(), {"labels": "classes"}, image_root=folder)


def test_rows_of_x_belong_to_image_and_place(tmp_path, monkeypatch):
    data = write_images(tmp_path / "images")
    model = AlexNetTransformer(SMALL).eval()
    pixels = learn_vision.read_pixels(data, tmp_path / "pixels.npy", SMALL)
    assert pixels.shape == (5, 3, 95, 95)
    assert [tuple(p) for p in pixels[:, :, 48, 48]] == [(40 * i, 10, 200) for i in range(5)]
    monkeypatch.setattr(learn_vision, "BATCH", 2)
    logits, facts = learn_vision.write_tokens(model, pixels, tmp_path / "x.npy")
    x = store.open_array(tmp_path / "x.npy", 2)
    joined = store.with_tokens(data, x, facts)
    assert x.shape == (facts["n_rows"], facts["d_in"]) == (5 * 4, 256)
    assert joined.tokens == SMALL.n_tokens == 4
    with torch.inference_mode():
        stream = model.blocks[:2](model.tokens(torch.from_numpy(np.array(pixels))))
        assert np.allclose(logits, model(torch.from_numpy(np.array(pixels))), atol=1e-5)
    for image, place in ((0, 0), (3, 2), (4, 3)):
        row = image * 4 + place
        assert np.allclose(x[row], stream[image, place], atol=1e-5)
        assert joined.images(row).name == f"{image}.png"
        assert np.array_equal(joined.embedding[row], data.x[image])


def test_an_image_that_changed_since_it_was_embedded_is_refused(tmp_path):
    data = write_images(tmp_path / "images")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "2.png")
    with pytest.raises(ArtifactError, match=r"2.png: changed.*run 01_embed again"):
        learn_vision.read_pixels(data, tmp_path / "pixels.npy", SMALL)
    assert not (tmp_path / "pixels.npy").exists()


def test_rows_that_do_not_fit_the_images_are_refused(tmp_path):
    data = write_images(tmp_path / "images")
    with pytest.raises(ArtifactError, match="x has 19 rows for 5 images with 4 tokens each"):
        store.with_tokens(data, np.zeros((19, 8), np.float32), {"tokens_per_image": 4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 16}, "layer = 16: must be below blocks = 16"),
        ({"heads": 7}, "heads = 7: must be a divisor of 256"),
        ({"dropout": 1.0}, "dropout = 1.0: should be less than 1"),
        ({"name": "alexnte"}, "name = 'alexnte': should be 'alexnet'"),
        ({"n_classes": 1}, "n_classes = 1: should be greater than or equal to 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**{"n_classes": 10} | settings)


def test_training_settings_and_labels_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vision_batch = 1: should be greater than or equal to 2"):
        VisionTraining(vision_batch=1)
    with pytest.raises(ValueError, match=r"vision_lr = nan: should be a finite number"):
        VisionTraining(vision_lr=float("nan"))
    pixels, labels = pictures()
    with pytest.raises(ValueError, match=r"labels 0 .. 2, expected 0 .. 1"):
        fit_vision(SMALL, pixels, labels * 2, np.arange(6), np.arange(6, 8), VisionTraining(), tmp_path)


def test_pixels_of_another_shape_are_refused(published):
    with pytest.raises(ValueError, match=r"pixels \(1, 3, 64, 64\).*expected"):
        published(torch.zeros((1, 3, 64, 64), dtype=torch.uint8))


def test_profile_asks_for_images_only_and_is_the_published_system(repo, tmp_path):
    write_images(tmp_path / "images")
    places = profiles.Places(root=repo)
    assert profiles.asked_for("alexnet", places) == ["images"]
    values = profiles.load_params("alexnet", False, {"images": str(tmp_path / "images")}, places)
    eyes, coders = values["vision_model"], MethodsConfig(**values["03_train"])
    sizes = {name: eyes[f"vision_{name}"] for name in ("blocks", "layer", "dropout", "variant")}
    assert VisionConfig(n_classes=10, **sizes) == VisionConfig(n_classes=10)
    assert VisionTraining(**{k: v for k, v in eyes.items() if k in VisionTraining.model_fields}) == VisionTraining()
    coder, training = coders.configs(coders.methods[0], 256, 1)
    assert coder == SparseCoderConfig.preset("alexnet", 256, 256)
    published = TrainConfig.preset("alexnet")
    assert training.with_(val_every=published.val_every) == published


def test_a_trained_model_is_an_encoder_whose_blocks_are_layers(whole, tmp_path):
    encoder = Encoder.load(f"alexnet:{whole}", device="cpu", layer="1", tokens="patches")
    pixels, _ = pictures(3)
    images = [Image.fromarray(p.transpose(1, 2, 0)) for p in pixels]
    model = load_vision(whole, "cpu")
    assert np.allclose(encoder.encode_layer(images), vision.vision_tokens(model, images), atol=1e-5)
    assert encoder.encode_images(images).shape == (3, 256) and encoder.layer.facts["token_grid"] == [2, 2]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    config = EmbedConfig(images=str(tmp_path), encoder=encoder.name, layer="1", tokens="patches")
    _, facts = from_images(config, encoder, tmp_path, tmp_path / "out")
    data = store.load_parts(tmp_path / "out", facts)
    assert data.x.shape == (3 * 4, 256) and data.tokens == 4 and len(data.phrases) == 0
    assert Encoder.of(facts, "cpu").fingerprint == encoder.fingerprint
    with pytest.raises(EncoderError, match="the weights cannot be loaded"):
        Encoder.load(f"alexnet:{tmp_path}", device="cpu")


def test_a_published_checkpoint_is_an_encoder_and_a_bare_state_dict_too(tmp_path):
    alexnet_model.write(tmp_path / "a.pth")
    torch.save(torch.load(tmp_path / "a.pth")["model_state_dict"], tmp_path / "bare.pth")
    encoder = Encoder.load(f"alexnet:{tmp_path / 'a.pth'}", device="cpu", layer="1", tokens="patches")
    assert Encoder.load(f"alexnet:{tmp_path / 'bare.pth'}", device="cpu").fingerprint == encoder.fingerprint
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 256, 256), np.uint8)
    cropped = alexnet_model.published(pixels[..., 16:240, 16:240])["stream"]
    found = encoder.encode_layer([Image.fromarray(p.transpose(1, 2, 0)) for p in pixels])
    assert np.allclose(found, cropped, atol=1e-4 * abs(cropped).max())


def test_a_published_checkpoint_takes_the_place_of_training(tmp_path):
    alexnet_model.write(tmp_path / "a.pth", causal=True)
    model = learn_vision.take_vision("a.pth", tmp_path, 10, 2, tmp_path / "vision")
    assert model.config.causal and model.config.layer == 2 and not model.training
    saved = json.loads((tmp_path / "vision" / "config.json").read_text())
    assert saved["checkpoint"] == "a.pth" and saved["variant"] == "published"
    with pytest.raises(ValueError, match=r"a\.pth: 10 classes, the images have 2"):
        learn_vision.take_vision("a.pth", tmp_path, 2, 2, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved, state: saved.update(scheduler=1), "field scheduler is not understood"),
        (lambda saved, state: state.pop("features.2.running_var"), "features.2.running_var is missing"),
        (
            lambda saved, state: state.update({"transformer.positions": torch.ones(3)}),
            "transformer.positions is not part",
        ),
        (
            lambda saved, state: state.update({"transformer.blocks.1.sa.heads.3.key.weight": torch.ones(8, 256)}),
            r"blocks.1.sa.heads.3.key.weight has shape \(8, 256\), expected \(16, 256\)",
        ),
        (lambda saved, state: state.clear(), "no AlexNet-Transformer"),
    ],
)
def test_wrong_fields_of_a_checkpoint_are_named(tmp_path, change, message):
    alexnet_model.write(tmp_path / "a.pth")
    saved = torch.load(tmp_path / "a.pth")
    change(saved, saved["model_state_dict"])
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a.pth: .*{message}"):
        vision.load_alexnet(tmp_path / "a.pth")


def test_published_model_learns_with_its_last_smaller_batch(tmp_path):
    config = SMALL.with_(variant="published", dropout=0.5)
    pixels, labels = pictures()
    training = VisionTraining(vision_epochs=2, vision_batch=4)
    model, history = fit_vision(config, pixels, labels, np.arange(6), np.arange(6, 8), training, tmp_path)
    assert list(history["lr"]) == [1e-4, 1e-4] and model.config == config
    again = load_vision(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    weights = torch.cat([p.flatten() for b in AlexNetTransformer(config).blocks for p in b.parameters() if p.ndim == 2])
    assert abs(weights.std() - 0.02) < 1e-4
