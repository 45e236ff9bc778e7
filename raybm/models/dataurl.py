"""Image files as data URLs (RFC 2397), so that a picture is a string in files, requests and answers alike."""

from __future__ import annotations

import base64
import binascii

from raybm.core.errors import UserError

MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"RIFF", "webp"),
    *((b"P%d" % kind, "x-portable-anymap") for kind in range(1, 7)),
)
_REMEDY = "Give data:image/png;base64,… with the bytes of an image file."


def encode(data: bytes) -> str:
    """The file's bytes → its URL. Raises UserError for what begins like no known format."""
    kind = next((kind for magic, kind in MAGIC if data.startswith(magic)), None)
    if kind is None:
        what = "is no image of a known format." if data else "is empty."
        raise UserError(what, where="image", remedy="Use PNG, JPEG, GIF, BMP, WebP or PNM.")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def is_image(value: object) -> bool:
    return isinstance(value, str) and value[:11].lower() == "data:image/"


def decode(url: object) -> bytes:
    """The URL → the file's bytes. Raises UserError."""
    if not isinstance(url, str) or not is_image(url):
        raise UserError("is no data URL of an image.", where="image", remedy=_REMEDY)
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UserError("is not in base64.", where="image", remedy=_REMEDY)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("is not base64.", where="image", remedy=_REMEDY) from None
