"""JSON as Python wrote it: NaN where there should be null."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from schemas import Reject
from shards.sink import Buffer

T = TypeVar("T")
MAX_JSON = 64 << 20  # bytes of one sample's; with pixels inside they are large


def decode(data: Buffer, decoder: msgspec.json.Decoder[T]) -> T:
    """The value in these bytes. Raises Reject: json_bytes, json or schema.

    decoder: made at import, because two threads that are the first to decode a Struct crash msgspec 0.22.
    """
    if len(data) > MAX_JSON:
        raise Reject("json_bytes", f"expected JSON of at most {MAX_JSON} bytes, found {len(data)}")
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Reject("schema", str(error)[:300]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _lenient(bytes(data), decoder, error)


def _lenient(data: bytes, decoder: msgspec.json.Decoder[T], error: Exception) -> T:
    if b"NaN" not in data and b"Infinity" not in data:
        raise Reject("json", f"expected JSON, found {error}"[:300]) from error
    try:
        value: Any = json.loads(data, parse_constant=lambda _: None)
        return decoder.decode(json.dumps(value, ensure_ascii=False).encode())  # refuses a lone surrogate
    except msgspec.ValidationError as wrong:
        raise Reject("schema", str(wrong)[:300]) from wrong
    except (ValueError, RecursionError) as wrong:
        raise Reject("json", f"expected JSON, found {wrong}"[:300]) from wrong
