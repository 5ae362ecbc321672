"""One encoder: rows in order, the same whatever the batch, the threads or the orientation; clear errors without weights."""

import hashlib
import json
import os

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

from mtlib.embed.embedding import embed_images
from mtlib.embed.encoders import Encoder, EncoderError, _checked_name
from mtlib.embed.images import load_image
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import complete
from mtlib.embed.store import open_array
from mtlib.run.artifacts import ArtifactError
from tests.embed.conftest import write_tiny_clip

N = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(N):
        size = (30 + i, 50, 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(root / f"{i:02d}.png")
    (root / "07.png").write_bytes(b"")
    (root / "20.png").write_bytes((root / "21.png").read_bytes()[:300])
    return root


def embed(tiny, folder, out, **options):
    out.mkdir(parents=True, exist_ok=True)
    listing, _ = find_images(folder)
    outcomes = embed_images(tiny, folder, listing, out, out / "shards", **options)
    return open_array(out / "x.npy", 2), complete(listing, outcomes, (0.6, 0.2, 0.2), 0)


def test_rows_follow_the_manifest_and_bad_files_leave_no_row(tiny, folder, tmp_path):
    x, manifest = embed(tiny, folder, tmp_path, batch_size=16)
    assert manifest["status"].value_counts().to_dict() == {"ok": N - 2, "empty": 1, "truncated": 1}
    for path, row in manifest.loc[manifest["status"] == "ok", ["path", "row"]].to_numpy():
        assert np.allclose(x[row], tiny.encode_images([load_image(folder / path)[0]])[0], atol=1e-5)
    digest = hashlib.sha256((folder / "05.png").read_bytes()).hexdigest()
    assert manifest.set_index("path").loc["05.png", "sha256"] == digest


def test_rows_do_not_depend_on_batch_size_beyond_rounding(tiny, folder, tmp_path):
    whole, _ = embed(tiny, folder, tmp_path / "24", batch_size=24)
    for size in (5, 16):
        x, _ = embed(tiny, folder, tmp_path / str(size), batch_size=size)
        assert np.abs(x - whole).max() <= 1e-5 * np.abs(whole).max()


def test_rows_do_not_depend_on_threads_or_on_bad_files(tiny, folder, tmp_path):
    one, _ = embed(tiny, folder, tmp_path / "1", batch_size=8, workers=1)
    four, _ = embed(tiny, folder, tmp_path / "4", batch_size=8, workers=4)
    assert np.array_equal(one, four)
    good = tmp_path / "good"
    good.mkdir()
    for path in folder.iterdir():
        os.link(path, good / path.name)
    for name in ("07.png", "20.png"):  # the bad files become good: their neighbours keep every bit
        (good / name).unlink()
        Image.new("RGB", (9, 9)).save(good / name)
    more, _ = embed(tiny, good, tmp_path / "g", batch_size=8)
    assert np.array_equal(np.delete(more, [7, 20], axis=0), one)


def test_interrupted_embedding_resumes_to_identical_bytes(tiny, folder, tmp_path):
    embed(tiny, folder, tmp_path / "whole", batch_size=8)
    calls = []

    def interrupt(n):
        calls.append(n)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(tiny, folder, tmp_path / "cut", batch_size=4, shard_files=8, progress=interrupt)
    again = []
    embed(tiny, folder, tmp_path / "cut", batch_size=4, shard_files=8, progress=again.append)
    assert sum(again) == N and again[0] == 8  # one shard stood, the second was in work
    embed(tiny, folder, tmp_path / "one", batch_size=4)
    assert (tmp_path / "cut" / "x.npy").read_bytes() == (tmp_path / "one" / "x.npy").read_bytes()


def test_files_changed_or_deleted_after_listing_are_reported(tiny, folder, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    listing, _ = find_images(own)
    (own / "03.png").write_bytes((own / "04.png").read_bytes())
    (own / "05.png").unlink()
    outcomes = embed_images(tiny, own, listing, tmp_path, tmp_path / "shards", batch_size=16)
    assert outcomes["status"][[3, 4, 5]].tolist() == ["changed", "ok", "changed"]


def test_eight_exif_orientations_have_equal_embeddings(tiny, tmp_path):
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    turn = [None, *(Image.Transpose(t) for t in (0, 3, 1, 5, 2, 6, 4))]  # what undoes orientations 1 to 8
    for orientation, method in enumerate(turn, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright if method is None else upright.transpose(method)
        stored.save(tmp_path / f"{orientation}.png", exif=exif)
    x = tiny.encode_images([load_image(tmp_path / f"{i}.png")[0] for i in range(1, 9)])
    same = [np.asarray(load_image(tmp_path / f"{i}.png")[0]).tobytes() for i in range(1, 9)]
    assert len(set(same)) == 1
    assert np.abs(x - x[0]).max() <= 1e-5 * np.abs(x).max()


def test_same_weights_same_fingerprint_other_weights_another(tiny, tiny_name, tmp_path):
    assert Encoder.load(tiny_name, device="cpu").fingerprint == tiny.fingerprint
    other = Encoder.load(write_tiny_clip(tmp_path / "b", seed=1), device="cpu")
    assert other.fingerprint != tiny.fingerprint
    assert Encoder.of({"encoder": tiny.record}, "cpu").fingerprint == tiny.fingerprint
    with pytest.raises(ArtifactError, match="another encoder"):
        Encoder.of({"encoder": tiny.record | {"fingerprint": other.fingerprint}}, "cpu")
    with pytest.raises(EncoderError, match="arrays"):
        Encoder.of({"encoder": {"name": "", "pretrained": "", "fingerprint": ""}})


def test_texts_are_unit_norm_means_over_templates(tiny):
    plain = tiny.encode_texts(["a hand", "a glass"])
    mean = tiny.encode_texts(["a hand", "a glass"], ("{}", "a photo of {}"))
    photo = tiny.encode_texts(["a photo of a hand", "a photo of a glass"])
    assert plain.shape == (2, tiny.d_out) and np.allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-6)
    expected = plain + photo
    assert np.allclose(mean, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert np.allclose(tiny.encode_texts(["a glass"] * 300)[299], plain[1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "pretrained", "say"),
    [
        ("ViT-L14", "openai", "nearest: .*ViT-L-14"),
        ("ViT-B-32", "", "needs pretrained"),
        ("ViT-B-32", "opanai", "no file and no tag"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "tag"),
        ("local-dir:/nowhere/at/all", "", "cannot be loaded"),
    ],
)
def test_unknown_encoder_is_a_clear_error(name, pretrained, say):
    with pytest.raises(EncoderError, match=say):
        Encoder.load(name, pretrained)


@pytest.mark.parametrize(
    ("where", "given", "say"),
    [
        ("tokenizer_kwargs", {"trust_remote_code": True}, "gives other libraries trust_remote_code"),
        ("tokenizer_kwargs", {"cache_dir": "/tmp/x", "clean": "lower"}, "gives other libraries cache_dir"),
        ("tokenizer_kwargs", {"bpe_path": "/dev/zero"}, "gives other libraries bpe_path"),
        ("hf_model_config", {"trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_a_model_folder_cannot_hand_arguments_to_other_libraries(tmp_path, where, given, say):
    name = write_tiny_clip(tmp_path)
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] = config["model_cfg"]["text_cfg"] | {where: given}
    path.write_text(json.dumps(config).replace("trust_remote", r"trus\u0074_remote"))
    with pytest.raises(EncoderError, match=say):
        Encoder.load(name, device="cpu")
    config["model_cfg"]["text_cfg"] = config["model_cfg"]["text_cfg"] | {where: {"clean": "canonicalize"}}
    if where == "tokenizer_kwargs":
        path.write_text(json.dumps(config))
        assert Encoder.load(name, device="cpu").tokenizer.clean_fn("A, b") == "a b"


def test_folder_without_weights_and_damaged_weights_are_errors(tiny_name, tmp_path):
    for kind in ("none", "text", "nan"):
        folder = tmp_path / kind
        name = write_tiny_clip(folder)
        weights = folder / "open_clip_model.safetensors"
        if kind == "nan":
            from safetensors.torch import load_file, save_file

            state = load_file(weights)
            state["visual.proj"][0, 0] = float("nan")
            save_file(state, weights)
        else:
            weights.unlink()
        if kind == "text":
            (folder / "pytorch_model.bin").write_text("not weights")
        with pytest.raises(EncoderError, match="NaN" if kind == "nan" else "cannot be loaded"):
            Encoder.load(name, device="cpu")


def test_checkpoint_holding_code_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    name = write_tiny_clip(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {"x": Evil()}}, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        Encoder.load(name, device="cpu")
    assert not (tmp_path / "executed").exists()


def test_openai_tags_switch_to_the_activation_they_were_trained_with():
    assert _checked_name(open_clip, "ViT-L-14", "openai") == ("ViT-L-14", {"force_quick_gelu": True})
    assert _checked_name(open_clip, "ViT-B-32", "laion2b_s34b_b79k") == ("ViT-B-32", {})


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
@pytest.mark.parametrize("classes", [0, 3, 1000])
def test_a_timm_checkpoint_is_read_whatever_its_classifier_and_size_of_images(name, classes, tmp_path):
    size = {"img_size": 64} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=classes, **size).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    found = Encoder.load(f"timm/{name}", str(tmp_path / "theirs.pth"), "cpu")
    assert found.shape == (3, *size.values(), *size.values()) if size else (3, 224, 224)
    pixels = torch.randn(2, *found.shape)
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    assert np.abs(found.encode_tensors(pixels) - wanted.numpy()).max() < 1e-5
    torch.save(theirs.state_dict() | {"extra.weight": torch.zeros(1)}, tmp_path / "theirs.pth")
    with pytest.raises(EncoderError, match=r'Unexpected key\(s\) in state_dict: "extra\.weight"'):
        Encoder.load(f"timm/{name}", str(tmp_path / "theirs.pth"), "cpu")


def test_a_clip_checkpoint_has_its_own_size_of_images_and_a_word_on_its_activation(tmp_path, capsys, monkeypatch):
    theirs, _, _ = open_clip.create_model_and_transforms("ViT-S-32-alt", force_image_size=96)
    torch.save(theirs.eval().state_dict(), tmp_path / "theirs.pt")
    found = Encoder.load("ViT-S-32-alt", str(tmp_path / "theirs.pt"), "cpu")
    assert found.shape == (3, 96, 96) and "GELU" not in capsys.readouterr().out
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert np.abs(found.encode_tensors(pixels) - theirs.encode_image(pixels).numpy()).max() < 1e-5
    monkeypatch.setattr("mtlib.embed.encoders._image_size", lambda *given: {})
    _checked_name(open_clip, "ViT-B-32", str(tmp_path / "theirs.pt"))
    assert (
        "run with GELU, since a file cannot say; weights of OpenAI's need encoder = 'ViT-B-32-quickgelu'"
        in capsys.readouterr().out
    )
