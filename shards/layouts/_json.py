"""JSON as Python wrote it: NaN where there should be null."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from schemas import Reject
from shards.sink import Buffer

T = TypeVar("T")
MAX_JSON = 64 << 20  # bytes of one sample's; with pixels inside they are large


def decode(data: Buffer, type: type[T]) -> T:
    """The value in these bytes. Raises Reject: json_bytes, json or schema."""
    if len(data) > MAX_JSON:
        raise Reject("json_bytes", f"expected JSON of at most {MAX_JSON} bytes, found {len(data)}")
    try:
        return msgspec.json.decode(data, type=type)
    except msgspec.ValidationError as error:
        raise Reject("schema", str(error)[:300]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _lenient(bytes(data), type, error)


def _lenient(data: bytes, type: type[T], error: Exception) -> T:
    if b"NaN" not in data and b"Infinity" not in data:
        raise Reject("json", f"expected JSON, found {error}"[:300]) from error
    try:
        value: Any = json.loads(data, parse_constant=lambda _: None)
        return msgspec.json.decode(json.dumps(value, ensure_ascii=False).encode(), type=type)  # refuses a lone surrogate
    except msgspec.ValidationError as wrong:
        raise Reject("schema", str(wrong)[:300]) from wrong
    except (ValueError, RecursionError) as wrong:
        raise Reject("json", f"expected JSON, found {wrong}"[:300]) from wrong
