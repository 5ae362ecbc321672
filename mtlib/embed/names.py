"""File names as they are stored: bytes that are not UTF-8 are escaped, so that a manifest is always valid text."""

from __future__ import annotations


def escape(name: str) -> str:
    """A file name as stored: bytes that are not UTF-8 as \\xNN, a backslash doubled; everything else literally."""
    raw = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def unescape(stored: str) -> str:
    """The inverse of `escape`: the name to hand to the file system."""
    out, rest = b"", stored.encode("utf-8")
    while (at := rest.find(b"\\")) >= 0:
        if rest[at + 1 : at + 2] == b"x":
            out, rest = out + rest[:at] + bytes([int(rest[at + 2 : at + 4], 16)]), rest[at + 4 :]
        else:
            out, rest = out + rest[:at] + b"\\", rest[at + 2 :]
    return (out + rest).decode("utf-8", "surrogateescape")
