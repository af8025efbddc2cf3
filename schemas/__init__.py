"""The record of format 1, its parts, its validation, and the error tree. Imports nothing of ours."""

from schemas import interrupt  # isort: skip - the first of all imports: Ctrl-C is minded from here on
from schemas.errors import RecordError, Reject, RequestError, ShardError, ShardweaveError, SourceError, StoreError
from schemas.record import (
    Choice,
    Expression,
    Image,
    Map,
    Mask,
    Part,
    Record,
    Region,
    Relation,
    Segment,
    Span,
    Turn,
)
from schemas.validate import validate

__all__ = [
    "Choice",
    "Expression",
    "Image",
    "Map",
    "Mask",
    "Part",
    "Record",
    "RecordError",
    "Region",
    "Reject",
    "Relation",
    "RequestError",
    "Segment",
    "ShardError",
    "ShardweaveError",
    "SourceError",
    "Span",
    "StoreError",
    "Turn",
    "interrupt",
    "validate",
]
