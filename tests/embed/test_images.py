"""Every image rule of the loader, on real files made here."""

import io
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from mtlib.embed.images import ImageRefused, from_pil, load_image, read_file

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(np.kron(RNG.integers(0, 255, (8, 12, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)))


def encoded(image=PHOTO, format="JPEG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(name, body):
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png(width, height, pixels, colour=2):
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_claiming(width, height):
    """A PNG whose header claims a size that its data does not have."""
    return png(width, height, zlib.compress(b""))


def png_bad_crc():
    data = bytearray(encoded(format="PNG"))
    at = data.index(b"IDAT") + 20
    data[at] ^= 1
    return bytes(data)


def png_with_text(n_bytes):
    data = encoded(format="PNG")
    return data[:33] + chunk(b"tEXt", b"Comment\0" + b"a" * n_bytes) + data[33:]


def mpo():
    return encoded(format="MPO", save_all=True, append_images=[PHOTO.copy()])


REFUSED = {
    "empty": (lambda: b"", "empty"),
    "jpeg_half": (lambda: encoded()[: len(encoded()) // 2], "truncated"),
    "jpeg_999": (lambda: encoded(quality=95)[: int(len(encoded(quality=95)) * 0.999)], "truncated"),
    "jpeg_no_end": (lambda: encoded()[:-2], "truncated"),
    "png_half": (lambda: encoded(format="PNG")[: len(encoded(format="PNG")) // 2], "truncated"),
    "webp_half": (lambda: encoded(format="WEBP")[: len(encoded(format="WEBP")) // 2], "truncated"),
    "gif_half": (lambda: encoded(format="GIF")[: len(encoded(format="GIF")) // 2], "truncated"),
    "bmp_half": (lambda: encoded(format="BMP")[: len(encoded(format="BMP")) // 2], "truncated"),
    "png_crc": (png_bad_crc, "corrupt"),
    "html_svg": (lambda: b"<html><body><svg></svg></body></html>", "not an image"),
    "html": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "text": (lambda: b"hello", "not an image"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format not allowed"),
    "svg": (lambda: b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "format not allowed"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + b"\0" * 40, "format not allowed"),
    "ppm": (lambda: encoded(format="PPM"), "not an image"),
    "square_13377": (lambda: png_claiming(13377, 13377), "too large"),
    "square_30000": (lambda: png_claiming(30000, 30000), "too large"),
    "text_64mb": (lambda: png_with_text(64 * 2**20), "too large"),
    "narrow": (lambda: encoded(Image.new("RGB", (1, 20000)), "PNG"), "aspect ratio"),
    "float_tiff": (lambda: encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "mode unsupported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_image_gets_its_reason(name, tmp_path):
    make, reason = REFUSED[name]
    path = tmp_path / "x.jpg"  # the name never helps
    path.write_bytes(make())
    with pytest.raises(ImageRefused) as e:
        load_image(path)
    assert e.value.reason == reason, e.value


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_allowed_format_loads_whatever_its_name(format, tmp_path):
    path = tmp_path / "x.dat"
    path.write_bytes(encoded(format=format))
    image, info = load_image(path)
    assert image.mode == "RGB" and image.size == PHOTO.size and info["format"] == format and info["note"] == ""


def test_one_pixel_is_accepted(tmp_path):
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png")[0].getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format, tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x", format)
    got = np.asarray(load_image(tmp_path / "x")[0])[..., 0].ravel()
    assert np.array_equal(got, np.arange(256))


def test_cmyk_without_profile_has_the_right_colours(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    r, g, b = load_image(tmp_path / "x.jpg")[0].getpixel((4, 4))
    assert r > 245 and g < 10 and b < 10


def test_cmyk_with_broken_profile_still_loads(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 255, 0)).save(tmp_path / "x.jpg", quality=100, icc_profile=b"nonsense" * 40)
    r, g, b = load_image(tmp_path / "x.jpg")[0].getpixel((4, 4))
    assert r < 10 and g > 245 and b < 10


def test_rgb_profile_on_cmyk_falls_back(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100, icc_profile=profile)
    assert load_image(tmp_path / "x.jpg")[0].getpixel((4, 4))[0] > 245


def test_transparency_is_laid_on_white(tmp_path):
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.putpixel((0, 0), (10, 20, 30, 255))
    half.save(tmp_path / "rgba.png")
    palette = half.convert("P")
    palette.info["transparency"] = palette.getpixel((3, 3))
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((3, 3)))
    Image.new("LA", (4, 4), (7, 0)).save(tmp_path / "la.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "grey_key.png", transparency=7)
    assert load_image(tmp_path / "rgba.png")[0].getpixel((0, 0)) == (10, 20, 30)
    for name in ("rgba", "p", "la", "grey_key"):
        assert load_image(tmp_path / f"{name}.png")[0].getpixel((3, 3)) == (255, 255, 255), name


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientations_give_equal_pixels(format, tmp_path):
    turn = {
        **{1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180},
        **{4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90},
        **{7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270},
    }
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    upright = None
    for orientation, method in turn.items():
        stored = PHOTO.transpose(method) if method is not None else PHOTO
        exif = Image.Exif()
        exif[0x0112] = orientation
        if format == "TIFF":
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[0x0112] = orientation
            stored.save(tmp_path / "x", format, tiffinfo=tags)
        else:
            stored.save(tmp_path / "x", format, exif=exif, **options)
        got = np.asarray(load_image(tmp_path / "x")[0]).astype(int)
        upright = got if upright is None else upright
        assert np.abs(got - upright).max() <= (0 if format != "JPEG" else 2), orientation


def test_broken_exif_is_ignored(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded(exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x02garbage"))
    assert load_image(tmp_path / "x.jpg")[0].size == PHOTO.size


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animated_uses_the_first_frame_and_says_so(format, tmp_path):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    red.save(tmp_path / "x", format, save_all=True, append_images=[blue], duration=100)
    image, info = load_image(tmp_path / "x")
    assert image.getpixel((4, 4))[0] > 240 and image.getpixel((4, 4))[2] < 10
    assert info["note"] == "animated: first frame used"


def test_trailing_bytes_after_a_whole_jpeg_are_accepted(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded() + b"\xff\xda" + b"motion photo" * 9)
    assert load_image(tmp_path / "x.jpg")[0].size == PHOTO.size


def test_pipe_link_missing_and_changed_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    PHOTO.save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    found = (tmp_path / "x.png").stat()
    for name, reason in {"pipe": "special file", "link.png": "symlink", "gone.png": "missing"}.items():
        with pytest.raises(ImageRefused) as e:
            read_file(tmp_path / name)
        assert e.value.reason == reason
    with pytest.raises(ImageRefused, match="changed: deleted since"):
        read_file(tmp_path / "gone.png", "0" * 64)  # one that was there when it was listed
    read_file(tmp_path / "x.png", (found.st_size, found.st_mtime_ns))
    for unchanged in ((found.st_size + 1, found.st_mtime_ns), "0" * 64):
        with pytest.raises(ImageRefused) as e:
            read_file(tmp_path / "x.png", unchanged)
        assert e.value.reason == "changed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the user for whom a file is unreadable")
def test_unreadable_file_is_refused_as_permission(tmp_path):
    PHOTO.save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    pid = os.fork()
    if pid == 0:  # the child alone drops its rights
        try:
            os.chmod(tmp_path, 0o755)
            for parent in tmp_path.parents[:2]:
                os.chmod(parent, 0o755)
            os.setuid(65534)
            read_file(tmp_path / "x.png")
        except ImageRefused as e:
            os._exit(0 if e.reason == "permission" else 3)
        except BaseException:
            os._exit(4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_largest_allowed_image_stays_below_one_gigabyte(tmp_path):
    rows = zlib.compress(b"\0" * (8000 * (1 + 4 * 8000)), 1)
    (tmp_path / "x.png").write_bytes(png(8000, 8000, rows, colour=6))
    code = (
        "import resource, sys; from mtlib.embed.images import load_image; m = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; a = m(); im, _ = load_image(sys.argv[1]); "
        "assert im.size == (8000, 8000); print((m() - a) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1024


def generated(**texts):
    """A PNG as image generators write it: the workflow and prompt in its texts, packed or not."""
    info = PngImagePlugin.PngInfo()
    for name, (text, packed) in texts.items():
        info.add_itxt(name, text, zip=packed) if name == "itxt" else info.add_text(name, text, zip=packed)
    return encoded(format="PNG", pnginfo=info, icc_profile=RNG.bytes(2 * 2**20))


def jpeg_with_segments(n_bytes):
    segment = b"\xff\xeb" + (65000).to_bytes(2, "big") + b"x" * 64998  # a signed history of the picture, in APP11
    data = encoded()
    return data[:2] + segment * (n_bytes // 65000) + data[2:]


USABLE = {
    "mpo": mpo,
    "mpo_second_cut": lambda: mpo()[:-200],
    "text_5mb": lambda: png_with_text(5 * 2**20),
    "text_packed": lambda: generated(workflow=("x" * (5 * 2**20), True)),
    "itxt_packed": lambda: generated(itxt=("x" * (5 * 2**20), True)),
    "many_texts": lambda: generated(**{f"t{i}": ("x" * 2**20, i % 2 == 0) for i in range(8)}),
    "text_bomb": lambda: generated(bomb=("a" * (80 * 2**20), True)),
    "jpeg_5mb_of_segments": lambda: jpeg_with_segments(5 * 2**20),
    "webp_5mb_of_xmp": lambda: encoded(format="WEBP", lossless=True, xmp=b"x" * (5 * 2**20)),
}


@pytest.mark.parametrize("name", USABLE)
def test_what_stands_beside_the_first_picture_does_not_make_it_unusable(name, tmp_path):
    (tmp_path / "x").write_bytes(USABLE[name]())
    image, info = load_image(tmp_path / "x")
    plain = load_image_of(tmp_path, encoded(format="JPEG" if info["format"] in ("JPEG", "MPO") else "PNG"))
    assert np.array_equal(np.asarray(image), np.asarray(plain))
    assert (info["note"] == "first of several pictures used") == name.startswith("mpo")


def load_image_of(folder, data):
    (folder / "plain").write_bytes(data)
    return load_image(folder / "plain")[0]


def test_orientation_in_a_text_of_a_png_is_kept(tmp_path):
    """As ImageMagick ("Raw profile type exif") and editors (XMP) store it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    xmp = '<x:xmpmeta><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    for name, text in (("Raw profile type exif", f"\nexif\n{len(raw)}\n{raw.hex()}\n"), ("XML:com.adobe.xmp", xmp)):
        info = PngImagePlugin.PngInfo()
        info.add_itxt(name, text) if name.startswith("XML") else info.add_text(name, text)
        info.add_text("workflow", "x" * (5 * 2**20))
        assert load_image_of(tmp_path, encoded(format="PNG", pnginfo=info)).size == PHOTO.size[::-1]


def test_compressed_text_bomb_is_never_unpacked(tmp_path):
    (tmp_path / "x.png").write_bytes(USABLE["text_bomb"]())
    code = (
        "import resource, sys; from mtlib.embed.images import load_image; m = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; a = m(); load_image(sys.argv[1]); print((m() - a) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40


def files_of_every_kind():
    """Names and bytes of pictures whose pixels need more than opening."""
    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        for format in ("JPEG", "PNG", "TIFF", "WEBP"):
            yield f"turned {turn} {format}", encoded(format=format, exif=exif.tobytes())
    grey = Image.fromarray((np.arange(96, dtype=np.uint16) * 600).reshape(8, 12))
    rgba = PHOTO.convert("RGBA")
    rgba.putalpha(128)
    yield from (
        ("grey", encoded(grey, "PNG")),
        ("alpha", encoded(rgba, "PNG")),
        ("cmyk", encoded(PHOTO.convert("CMYK"))),
    )
    yield from (("palette", encoded(PHOTO.convert("P"), "GIF")), ("mpo", mpo()), ("text", png_with_text(5 * 2**20)))
    yield "animated", encoded(format="GIF", save_all=True, append_images=[PHOTO.rotate(90)])


@pytest.mark.parametrize("state", ["opened", "decoded", "copied", "loaded here", "of memory"])
def test_an_image_opened_by_the_caller_has_the_pixels_of_its_file(state, tmp_path):
    for name, data in files_of_every_kind():
        (tmp_path / "x").write_bytes(data)
        with Image.open(io.BytesIO(data) if state == "of memory" else tmp_path / "x") as opened:
            if state == "decoded":
                opened.load()
            given = {"copied": opened.copy, "loaded here": lambda: load_image(tmp_path / "x")[0]}.get(
                state, lambda: opened
            )()
            expected, got = np.asarray(load_image(tmp_path / "x")[0]), np.asarray(from_pil(given))
            assert np.array_equal(got, expected), name
            assert np.array_equal(np.asarray(from_pil(given)), expected), f"{name}: asked again"
            opened.load()  # what the caller holds is still good


@pytest.mark.parametrize(
    "name", [n for n, (make, _) in REFUSED.items() if n not in ("empty", "square_30000", "square_13377")]
)
def test_an_image_opened_by_the_caller_is_refused_as_its_file_is(name):
    make, reason = REFUSED[name]
    try:
        opened = Image.open(io.BytesIO(make()))
    except OSError:
        return  # the caller has no image
    with pytest.raises(ImageRefused) as e:
        from_pil(opened)
    assert e.value.reason in (reason, "format not allowed"), e.value


def test_what_the_caller_painted_is_kept():
    opened = Image.open(io.BytesIO(encoded(format="PNG")))
    opened.paste((0, 255, 0), (0, 0, 96, 64))
    assert set(np.asarray(from_pil(opened)).reshape(-1, 3).max(0)) == {0, 255}
    second = Image.open(io.BytesIO(encoded(format="GIF", save_all=True, append_images=[Image.new("RGB", PHOTO.size)])))
    second.seek(1)
    assert np.asarray(from_pil(second)).max() == 0
