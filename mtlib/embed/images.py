"""The one way an image is loaded: encoder, collages and language models all see these pixels.

Every file gives either an RGB image or `ImageRefused` with one of REASONS; never a hang, a decompression bomb or another
program (Ghostscript is never called). What is done to the pixels, in order: decode frame 0, apply the EXIF orientation,
scale 16-bit grey to 8 bits, convert CMYK by its colour profile when it has one, lay transparency on white. An image of
1 x 1 pixel is accepted: it becomes one flat colour.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from mtlib.embed import archives

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MPO = "MPO"  # what Pillow calls a JPEG with further pictures behind the first, as drones and phones write it
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 64_000_000  # four copies at 4 bytes stay below 1 GB
MAX_BYTES = 256 * 2**20  # of the file
MAX_TEXT = 64 * 2**20  # bytes of text in a PNG, which are stepped over
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
TURNED_BY = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # texts of a PNG that may hold its orientation
MAX_ASPECT = 50.0
BACKGROUND = (255, 255, 255)  # below transparency
REASONS = (
    *("empty", "truncated", "corrupt", "not an image", "format not allowed", "too large", "aspect ratio"),
    *("mode unsupported", "changed", "permission", "symlink", "special file", "not sampled"),
    *("annotation", "missing", "outside", "hidden"),
)
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\x00\x00\x01\x00": "ICO",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II+\x00": "BigTIFF",
    b"MM\x00+": "BigTIFF",
}
# Pillow warns of broken EXIF and of large images; here both are handled, the first by ignoring it, the second by MAX_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageRefused(ValueError):
    """An image that is not used: `reason` is one of REASONS, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def load_image(path: Path, unchanged: str | tuple[int, int] | None = None) -> tuple[Image.Image, dict]:
    """Load one image file safely.

    Args:
        path:      file, or member of a .tar file; symbolic links, pipes and devices are refused.
        unchanged: refuse the file as "changed" unless it still has this sha256, or this (size, mtime_ns).
    Returns: (RGB image, info): info has sha256, format, mode, width, height (as stored) and note ("" or what was done).
    Raises: ImageRefused.
    """
    data = read_file(path, unchanged)
    image, info = decode(data)
    return image, {"sha256": hashlib.sha256(data).hexdigest()} | info


def from_pil(image: Image.Image) -> Image.Image:
    """The same RGB pixels of an image that a caller opened as `load_image` gives of its file. Raises: ImageRefused.

    One that was not decoded yet goes by the bytes of its file; of others there are only pixels, orientation and format.
    """
    file = getattr(image, "fp", None)
    if file is not None and getattr(image, "tile", None) and image.tell() == 0:
        at = file.tell()
        file.seek(0)
        data = file.read(MAX_BYTES + 1)
        file.seek(at)
        if len(data) > MAX_BYTES:
            raise ImageRefused("too large", f"more than {MAX_BYTES} bytes")
        return decode(data)[0]
    _check_header(image)
    with _refusals(b""):
        image = image.copy()  # decoded completely; the caller's own stays as it is
        _orient(image)
        return to_rgb(image)


def read_file(path: Path, unchanged: str | tuple[int, int] | None = None) -> bytes:
    """Bytes of a regular file, read once. Raises: ImageRefused (see `load_image`)."""
    try:
        data, size, mtime_ns = _bytes_of(path)
        if isinstance(unchanged, tuple) and (size, mtime_ns) != tuple(unchanged):
            raise ImageRefused("changed", "size or time differ from when the folder was listed")
        if size > MAX_BYTES:
            raise ImageRefused("too large", f"{size} bytes, at most {MAX_BYTES}")
    except FileNotFoundError as e:
        if unchanged is None:
            raise ImageRefused("missing", f"no such file: {path}") from e
        raise ImageRefused("changed", "deleted since the folder was listed") from e
    except PermissionError as e:
        raise ImageRefused("permission", "not readable") from e
    except OSError as e:
        raise ImageRefused("symlink" if os.path.islink(path) else "special file", e.strerror or "") from e
    if isinstance(unchanged, str) and hashlib.sha256(data).hexdigest() != unchanged:
        raise ImageRefused("changed", "its bytes differ from those that were embedded")
    if not data:
        raise ImageRefused("empty", "0 bytes")
    return data


def _bytes_of(path: Path) -> tuple[bytes, int, int]:
    """(bytes, size, mtime_ns) of a file or of a member of an archive; nothing is read of one that is too large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    except NotADirectoryError:
        return archives.read(path, MAX_BYTES)
    with open(fd, "rb") as f:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ImageRefused("special file", "not a regular file")
        data = f.read(MAX_BYTES + 1) if found.st_size <= MAX_BYTES else b""
    return data, found.st_size, found.st_mtime_ns


def decode(data: bytes) -> tuple[Image.Image, dict]:
    """Decode an image held in memory. Returns and raises as `load_image`, without the sha256."""
    kind = _kind(data)
    if kind not in FORMATS:
        raise ImageRefused("format not allowed", kind) if kind else ImageRefused("not an image", repr(data[:12]))
    if kind == "PNG":
        data = _check_png(data)
    with _refusals(data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_header(image)
        kept = {"format": image.format, "mode": image.mode, "width": image.width, "height": image.height}
        image.load()  # frame 0, completely
        if kind == "JPEG" and not _jpeg_ends(data):
            raise ImageRefused("truncated", "JPEG without an end marker")
        note = "animated: first frame used" if _animated(image, data) else ""
        _orient(image)
        return to_rgb(image), kept | {"note": "first of several pictures used" if image.format == MPO else note}


@contextlib.contextmanager
def _refusals(data: bytes) -> Iterator[None]:
    """What decoding raises as ImageRefused."""
    try:
        yield
    except ImageRefused:
        raise
    except Image.DecompressionBombError as e:
        raise ImageRefused("too large", str(e)) from e
    except MemoryError as e:
        raise ImageRefused("too large", "not enough memory to decode") from e
    except Exception as e:  # of a damaged file Pillow raises almost anything (struct.error, KeyError, SyntaxError ...)
        text = f"{type(e).__name__}: {e}"
        if "too large" in text.lower() or "too much memory" in text.lower():
            raise ImageRefused("too large", text[:200]) from e
        cut = "truncated" in text.lower() or "eof" in text.lower() or _short_webp(data)
        raise ImageRefused("truncated" if cut else "corrupt", text[:200]) from e


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image of any supported mode. Raises: ImageRefused("mode unsupported")."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", rgba.size, BACKGROUND)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb
    if image.mode in ("RGB", "L", "P", "1", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise ImageRefused("mode unsupported", f"{image.mode} (8-bit colour or grey and 16-bit grey are supported)")


def _kind(data: bytes) -> str:
    """Format by the first bytes, "" if unknown; the file's name plays no part."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("latin-1").strip()
        known = {"avi": "AVIF", "hei": "HEIC", "hev": "HEIC", "mif": "HEIC", "msf": "HEIC"}
        return known.get(brand[:3], f"ftyp {brand}")
    if data[:512].lstrip().startswith((b"<?xml", b"<svg")) and b"<svg" in data[:1024]:
        return "SVG"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), "")


def _check_header(image: Image.Image) -> None:
    """Refuse what should not be decoded; called before any pixel is."""
    if image.format not in (None, MPO, *FORMATS):
        raise ImageRefused("format not allowed", image.format)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRefused("too large", f"{width} x {height} pixels, at most {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageRefused("aspect ratio", f"{width} x {height}, at most {MAX_ASPECT:g} : 1")


def _check_png(data: bytes) -> bytes:
    """The PNG without its texts and colour profile, which change no pixel here but may be of any size.

    Its chunks are walked, since Pillow does not compare the checksums of the pixels.
    """
    at, text, kept = 8, 0, [data[:8]]
    while at + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if end > len(data):
            break
        view = memoryview(data)[at:end]
        if zlib.crc32(view[4:-4]) != int.from_bytes(view[-4:], "big"):
            raise ImageRefused("corrupt", f"PNG chunk {name.decode('latin-1')!r} has a wrong checksum")
        text += length * (name in TEXTS)
        if text > MAX_TEXT:
            raise ImageRefused("too large", f"more than {MAX_TEXT} bytes of text in a PNG")
        if name != b"iCCP" and (name not in TEXTS or data.startswith(TURNED_BY, at + 8)):
            kept.append(view)
        if name == b"IEND":
            return b"".join(kept)
        at = end
    raise ImageRefused("truncated", "PNG without an end chunk")


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the first scan; segments before it are stepped over by their lengths."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True  # an unusual layout that decoded completely


def _short_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def _animated(image: Image.Image, data: bytes) -> bool:
    """Asked of a second reader for GIF, since looking for the next frame disturbs the first."""
    try:
        if image.format == "GIF":
            with Image.open(io.BytesIO(data), formats=("GIF",)) as other:
                return other.is_animated
        return getattr(image, "is_animated", False)
    except Exception:  # a later frame is broken; frame 0 is what counts
        return True


def _orient(image: Image.Image) -> None:
    """Turn upright by the EXIF orientation, in place; broken EXIF is ignored."""
    with contextlib.suppress(Exception):  # Pillow parses EXIF and XMP lazily and raises many types
        ImageOps.exif_transpose(image, in_place=True)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """By the embedded colour profile; without a usable one R = (255 - C)(255 - K) / 255, and so on."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile: the plain formula below
    return image.convert("RGB")
