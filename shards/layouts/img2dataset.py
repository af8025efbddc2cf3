"""img2dataset: KEY.jpg|png|webp with KEY.txt and KEY.json. https://github.com/rom1504/img2dataset#output-format

One record a picture: a `text` turn with the picture and then its caption, untouched: that of the JSON, or the .txt where it has none; none
there either: the picture alone. `origin` is the URL, `similarity` and `language` the columns of that name. Kept in meta: id (the key in the
tar), url, original_width, original_height, and SAMPLE_ID, LICENSE, NSFW, pwatermark, punsafe where there are such columns. Rows that
failed to download are not in the tar; its .parquet counts them.

Rejects: image_missing, size_differs (the JSON is another picture's), image_bytes, json, json_bytes, schema, caption (no UTF-8, or too
long), and what `measure` says of the picture.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from schemas import Reject, record
from schemas.picture import measure
from shards.layouts import Made, Members
from shards.layouts._json import decode

PICTURES = ("jpg", "png", "jpeg", "webp", "gif", "bmp", "tif", "tiff")  # in this order where there are several
KEPT = ("url", "original_width", "original_height", "SAMPLE_ID", "LICENSE", "NSFW", "pwatermark", "punsafe")
MAX_BYTES = 256 << 20  # of a picture
MAX_CAPTION = 1 << 20  # bytes
MAX_TEXT = 2000  # characters of a string that is kept: a data: URL holds a whole picture
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")  # nolang is none
_fields = msgspec.json.Decoder(dict[str, Any])


def known(members: Members) -> bool:
    """A picture with its caption or its row."""
    return any(suffix in members for suffix in PICTURES) and ("txt" in members or "json" in members)


def make(id: str, members: Members) -> Made:
    """One picture and its caption. Raises Reject."""
    data = next((members[suffix] for suffix in PICTURES if suffix in members), None)
    if data is None:
        raise Reject("image_missing", f"{id[:100]}: expected a picture, found {', '.join(sorted(members))[:200]}")
    if len(data) > MAX_BYTES:
        raise Reject("image_bytes", f"{id[:100]}: expected at most {MAX_BYTES} bytes, found {len(data)}")
    fields = decode(members["json"], _fields) if "json" in members else {}
    url = fields.get("url")
    if not isinstance(url, str | None):
        raise Reject("schema", f"expected a url, found {str(url)[:100]!r}")
    picture = measure(data)
    said = fields.get("width"), fields.get("height")
    if None not in said and said != (picture.width, picture.height):
        raise Reject("size_differs", f"expected {said[0]} x {said[1]}, found {picture.width} x {picture.height}")
    image = record.image(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        bytes=len(data),
        origin=_kept(url),
        similarity=_similarity(fields.get("similarity")),
    )
    caption = _caption(fields.get("caption"), members)
    parts = [record.image_part(0), *([record.text_part(caption)] if caption else [])]
    meta = {"id": id, **{name: value for name in KEPT if (value := _kept(fields.get(name))) is not None}}
    turns = [record.turn("text", parts)]
    made = record.record("img2dataset", images=[image], turns=turns, language=_language(fields.get("LANGUAGE")), meta=meta)
    return Made(made, [data], {})


def _caption(said: Any, members: Members) -> str:
    text = members.get("txt", b"")
    if isinstance(said, str):
        return said
    if len(text) > MAX_CAPTION:
        raise Reject("caption", f"expected at most {MAX_CAPTION} bytes, found {len(text)}")
    try:
        return str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise Reject("caption", f"expected UTF-8, found {error}"[:200]) from error


def _kept(value: Any) -> Any:
    number = isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**64)
    return value if number or (isinstance(value, str) and 0 < len(value) <= MAX_TEXT) else None


def _similarity(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 2**63 else None  # false for a NaN


def _language(value: Any) -> str | None:
    return value if isinstance(value, str) and _LANGUAGE.fullmatch(value) else None
