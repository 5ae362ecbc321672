"""Tokens of a layer: the same numbers as the model's own, whatever the layout; replacing them changes what follows."""

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mtlib.embed.embedding import embed_images
from mtlib.embed.encoders import Encoder, EncoderError
from mtlib.embed.layers import Layer, LayerError, blocks
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import complete
from mtlib.embed.store import open_array

SIDE, B = 32, 3


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(B, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def vision(**options):
    torch.manual_seed(0)
    kind = open_clip.transformer.VisionTransformer
    return kind(
        image_size=SIDE, patch_size=8, width=32, layers=3, heads=2, mlp_ratio=2.0, output_dim=24, **options
    ).eval()


def small_timm(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options).eval()


def find(tower, layer, tokens):
    return Layer.find(tower, lambda n: tower(torch.zeros(n, 3, SIDE, SIDE)), layer, tokens)


def same(a, b):
    """Equal up to the order in which a processor adds."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def read(tower, pixels, layer, tokens):
    place = find(tower, layer, tokens)
    with torch.no_grad(), place.recorded() as seen:
        tower(pixels)
    assert len(seen) == 1 and seen[0].shape == (B, place.n_tokens, place.width)
    return seen[0], place


def test_open_clip_blocks_are_read_as_the_model_computes_them(pixels):
    tower = vision()
    with torch.no_grad():
        wanted = tower.forward_intermediates(pixels, indices=[1], output_fmt="NLC", normalize_intermediates=False)
    patches, place = read(tower, pixels, "1", "patches")
    assert same(patches, wanted["image_intermediates"][0]) and place.name == "transformer.resblocks.1"
    everything, place = read(tower, pixels, "-2", "all")
    cls, _ = read(tower, pixels, "transformer.resblocks.1", "cls")
    mean, _ = read(tower, pixels, "visual.transformer.resblocks.1", "mean")
    assert same(everything, torch.cat([cls, patches], dim=1)) and place.facts["first_patch"] == 1
    assert same(mean[:, 0], patches.mean(dim=1)) and place.facts["token_grid"] == [4, 4]


def test_sequence_first_towers_give_the_same_tokens(pixels):
    tower, turned = vision(), vision()
    turned.transformer.batch_first = False
    for block in turned.transformer.resblocks:
        block.attn.batch_first = False
    for tokens in ("cls", "patches", "all", "mean"):
        x, place = read(turned, pixels, "1", tokens)
        assert place.axis == 1 and torch.allclose(x, read(tower, pixels, "1", tokens)[0], atol=1e-6)
    for tokens in ("cls", "all"):
        with torch.no_grad(), find(turned, "1", tokens).replaced(lambda x: 2 * x):
            doubled = turned(pixels)
        with torch.no_grad(), find(tower, "1", tokens).replaced(lambda x: 2 * x):
            assert torch.allclose(doubled, tower(pixels), atol=1e-5)


def test_timm_register_tokens_are_no_patches(pixels):
    tower = small_timm("vit_tiny_patch16_224", img_size=SIDE, depth=2, reg_tokens=4)
    x, place = read(tower, pixels, "0", "patches")
    with torch.no_grad():
        _, wanted = tower.forward_intermediates(pixels, indices=[0], output_fmt="NLC")
    assert place.prefix == 5 and same(x, wanted[0]) and place.name == "blocks.0"
    assert same(read(tower, pixels, "0", "cls")[0][:, 0], read(tower, pixels, "0", "all")[0][:, 0])


def test_towers_without_a_class_token_say_so(pixels):
    tower = small_timm("vit_base_patch16_siglip_gap_224", img_size=SIDE, depth=1, embed_dim=48, num_heads=2)
    with pytest.raises(LayerError, match="no class token"):
        find(tower, "0", "cls")
    x, place = read(tower, pixels, "0", "all")
    assert x.shape == (B, 4, 48) and place.prefix == 0 and place.facts["first_patch"] == 0


def test_maps_become_tokens_row_by_row(pixels):
    tower = small_timm("resnet18", in_chans=3)
    x, place = read(tower, pixels, "2", "patches")
    with torch.no_grad():
        wanted = tower.layer2(tower.layer1(tower.maxpool(tower.act1(tower.bn1(tower.conv1(pixels))))))
    assert place.name == "layer2" and place.grid == (4, 4) and place.form == "map"
    assert same(x[:, 4 * 1 + 2], wanted[:, :, 1, 2])
    with torch.no_grad(), place.replaced(torch.zeros_like):
        assert same(tower(pixels)[0], tower(-pixels)[1])  # nothing of the image is left
    assert same(place.write(wanted, x), wanted)
    with pytest.raises(LayerError, match="no class token"):
        find(tower, "2", "cls")


def test_maps_with_channels_last_become_the_same_tokens(pixels):
    tower = small_timm(
        "swin_tiny_patch4_window7_224", img_size=SIDE, window_size=2, depths=(1, 1), num_heads=(2, 2), embed_dim=16
    )
    x, place = read(tower, pixels, "0", "patches")
    with torch.no_grad():
        wanted = tower.layers[0](tower.patch_embed(pixels))  # (B, H, W, C)
    assert place.form == "map_last" and same(x, wanted.flatten(1, 2)) and same(place.write(wanted, x), wanted)


def test_vectors_are_one_token(pixels):
    head, place = read(small_timm("resnet18"), pixels, "global_pool", "mean")
    assert head.shape == (B, 1, 512) and place.form == "vector"


def test_replacing_with_what_was_read_changes_nothing_and_the_hook_is_gone_after(pixels):
    tower = vision()
    with torch.no_grad():
        plain = tower(pixels)
        for tokens in ("cls", "patches", "all"):
            place = find(tower, "1", tokens)
            with place.replaced(lambda x: x.clone()):
                assert same(tower(pixels), plain)
            with place.replaced(torch.zeros_like):
                assert not torch.allclose(tower(pixels), plain)
            assert same(tower(pixels), plain)
        with pytest.raises(RuntimeError, match="stop"), find(tower, "1", "cls").replaced(stop):
            tower(pixels)
        assert same(tower(pixels), plain)
        with pytest.raises(LayerError, match="mean"), find(tower, "1", "mean").replaced(torch.zeros_like):
            tower(pixels)
        wide = find(tower, "1", "cls").replaced(lambda x: x.expand(-1, 2, -1))
        with pytest.raises(LayerError, match=r"replacement \(3, 2, 32\), expected \(3, 1, 32\)"), wide:
            tower(pixels)


def stop(x):
    raise RuntimeError("stop")


@pytest.mark.parametrize(
    ("layer", "tokens", "say"),
    [
        ("3", "cls", "has 3 blocks, 0 to 2"),
        ("-4", "cls", "has 3 blocks"),
        ("transformer.resblock.1", "cls", "nearest: .*transformer.resblocks.1"),
        ("1", "patch", "tokens = 'patch' is not one of"),
    ],
)
def test_unknown_layers_and_tokens_are_named(layer, tokens, say):
    with pytest.raises(LayerError, match=say):
        find(vision(), layer, tokens)


def test_blocks_of_every_kind_of_tower_have_numbers():
    assert blocks(vision()) == [f"transformer.resblocks.{i}" for i in range(3)]
    assert len(blocks(Encoder.load("demo", device="cpu").tower)) == 6  # its stages, coarser one by one
    torch.manual_seed(0)
    assert blocks(open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 8, 2, 32, 8)) == [
        f"layer{i}" for i in range(1, 5)
    ]


def test_layer_rows_and_final_embeddings_are_stored_together(tiny_name, tiny, tmp_path):
    encoder = Encoder.load(tiny_name, device="cpu", layer="0", tokens="patches")
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(7):
        noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"")
    listing, _ = find_images(folder)
    outcomes = embed_images(encoder, folder, listing, tmp_path, tmp_path / "s", batch_size=4, shard_files=4)
    manifest = complete(listing, outcomes, (0.6, 0.2, 0.2), 0)
    x, final = open_array(tmp_path / "x.npy"), open_array(tmp_path / "embedding.npy")
    assert x.shape == (6 * 16, 32) and final.shape == (6, 24) and (manifest["status"] == "ok").sum() == 6
    images = [Image.open(folder / f"{i}.png").convert("RGB") for i in range(7) if i != 3]
    assert np.allclose(encoder.encode_layer(images).reshape(-1, 32), x, atol=1e-5)
    assert np.allclose(tiny.encode_images(images), final, atol=1e-5)
    assert Encoder.of({"encoder": encoder.record}, "cpu").layer.name == "transformer.resblocks.0"


def test_timm_models_embed_images_and_refuse_texts(tmp_path, pixels):
    torch.manual_seed(0)
    model = timm.create_model("test_vit")  # timm's own model for tests: with a classifier, as published ones are
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    encoder = Encoder.load("timm/test_vit", str(path), device="cpu")
    model.reset_classifier(0)
    image = torch.randn(2, *encoder.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert same(torch.from_numpy(encoder.encode_tensors(image)), model.eval()(image)) and encoder.d_out == 64
    with pytest.raises(EncoderError, match="images only"):
        encoder.encode_texts(["a hand"])
    for name, pretrained, say in (
        ("timm/test_vitt", "", "nearest: timm/test_vit"),
        ("timm/test_vit", "gone.pt", "no file"),
    ):
        with pytest.raises(EncoderError, match=say):
            Encoder.load(name, pretrained)


def test_bf16_stays_close_and_has_a_fingerprint_of_its_own(tiny_name, tiny, pixels):
    half = Encoder.load(tiny_name, device="cpu", precision="bf16")
    a, b = tiny.encode_tensors(pixels), half.encode_tensors(pixels)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert b.dtype == np.float32 and cosine.min() > 0.999 and not np.array_equal(a, b)
    texts = (tiny.encode_texts(["a hand"]) * half.encode_texts(["a hand"])).sum()
    assert texts > 0.999 and half.fingerprint != tiny.fingerprint
    assert Encoder.of({"encoder": half.record}, "cpu").precision == "bf16"
    with pytest.raises(ValueError, match="precision = 'fp8'"):
        Encoder.load(tiny_name, precision="fp8")
