"""Curation: what a user does not want of an input, refused by name at ingest. Off by default; every reason is counted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pipelines.source import Row, Sample


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What is asked of a sample before it is written. Its fields are flags of `convert`."""

    def given(self) -> dict[str, Any]:
        """What is set, by name: a part of the manifest's options."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    def applied(self, key: str, row: Row, sample: Sample) -> Sample:
        """The sample as it is to be written. Raises Reject where it is not wanted."""
        return sample
