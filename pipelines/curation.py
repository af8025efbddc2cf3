"""Curation: what a user does not want of an input, refused by name at ingest. Every filter is off unless asked for, every refusal counted.

Three things happen to an item, in this order:

* Hold-out: an item on the other side of the split is refused before it is read: split_train, split_held_out (pipelines.hold_out).
* Filters, which judge what upstream gives: `curated_` and the flag's name. Those of pictures judge each by itself: of several the refused
  are dropped (images_dropped) with all that hangs on them, and the record only where none is left. A record without pictures passes them.
  Text is that of the record's turns, markup and all sides of a conversation included, without its choices.
* Resizing, of what is left (pipelines.resize): a picture that can not be decoded is dropped, or the record refused, as everywhere.

What a filter asks about may not be stated: no similarity, no language, no column punsafe. Then the filter refuses (`curated_no_` and what
is missing), because nobody can say that it is passed; `--absent keep` lets such records and pictures through.

A source that filters by itself keeps its flag: mmc4's --min-image-bytes works before pictures are assigned to sentences, as OpenFlamingo's,
and takes the place of the one here. What was asked for is no fault of the input: none of it counts against --max-reject-rate.

`--filters NAME` sets what an upstream filtered by; a flag beside it counts more.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import msgspec

from pipelines.drop import without
from pipelines.hold_out import HELD_OUT, SIDES, TRAIN, side
from pipelines.resize import shrink
from pipelines.source import Row, Sample, Source, Tally, option
from schemas import Image, Record, Reject, RequestError
from schemas.validate import MAX_SIDE

FILTERS: dict[str, dict[str, Any]] = {
    # MIN_KB = 10 of open_flamingo/train/data.py, which keeps len // 1000 > 10, and --mmc4_textsim_threshold of its README
    "openflamingo": {"min_image_bytes": 11_000, "min_similarity": 0.24},
    "laion-400m": {"min_text": 5, "min_image_bytes": 5_000, "min_similarity": 0.3},  # https://arxiv.org/abs/2111.02114
    "laion-2b-en": {"min_text": 5, "min_image_bytes": 5_000, "min_similarity": 0.28},  # https://laion.ai/blog/laion-5b/
}
NSFW = ("UNLIKELY", "UNSURE", "NSFW")
ABSENT = ("refuse", "keep")
CURATED, SPLIT = "curated_", "split_"
_ELSEWHERE = frozenset(("image_min_bytes", "duplicate_record", "duplicate_image"))  # mmc4's own filter, pipelines.duplicates
_BOUNDS: dict[str, tuple[float, float]] = {
    "min_side": (1, MAX_SIDE),
    "drop_larger": (1, MAX_SIDE),
    "max_aspect": (1, math.inf),
    "min_image_bytes": (0, math.inf),
    "max_image_bytes": (0, math.inf),
    "min_similarity": (-1, 1),
    "min_text": (0, math.inf),
    "max_text": (0, math.inf),
    "max_punsafe": (0, 1),
    "max_pwatermark": (0, 1),
    "max_side": (1, MAX_SIDE),
}
_PAIRS = (("min_side", "drop_larger"), ("min_image_bytes", "max_image_bytes"), ("min_text", "max_text"))
_TAG = re.compile(r"([a-z]{2,3})(-[a-z0-9]{1,8})*", re.IGNORECASE)
# ISO 639-1, and what CLD3 still says for Hebrew, Indonesian, Yiddish, Javanese and Serbo-Croatian
_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa "
    "ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr "
    "ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl "
    "ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur "
    "uz ve vi vo wa wo xh yi yo za zh zu in iw ji jw sh"
)
_LANGUAGES = frozenset(_CODES.split())


def asked(reason: str) -> bool:
    """Whether an input was refused because the user asked for it, and not because anything is wrong with it."""
    return reason.startswith((CURATED, SPLIT)) or reason in _ELSEWHERE


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What is asked of a sample before it is written. Its fields are flags of `convert`.

    Raises RequestError where something is asked for that can not be.
    """

    min_side: int | None = option("drop pictures whose shorter side has fewer pixels", default=None)
    drop_larger: int | None = option("drop pictures whose longer side has more pixels (--max-side makes them smaller)", default=None)
    max_aspect: float | None = option("drop pictures whose longer side is more than so many times the shorter one", default=None)
    min_image_bytes: int | None = option("drop pictures of fewer bytes", default=None)
    max_image_bytes: int | None = option("drop pictures of more bytes", default=None)
    min_similarity: float | None = option("drop pictures that are less similar to their text: -1 to 1", default=None)
    min_text: int | None = option("refuse records of fewer characters of text", default=None)
    max_text: int | None = option("refuse records of more characters of text", default=None)
    language: tuple[str, ...] = option("refuse records of other languages; en stands for en-GB, too", default=())
    nsfw: tuple[str, ...] = option("refuse records whose column NSFW says something else", default=(), choices=NSFW)
    max_punsafe: float | None = option("refuse records whose column punsafe is higher: 0 to 1", default=None)
    max_pwatermark: float | None = option("refuse records whose column pwatermark is higher: 0 to 1", default=None)
    absent: str = option("what to do where a filter's value is not stated", default="refuse", choices=ABSENT)
    max_side: int | None = option(
        "re-encode larger pictures with so many pixels on their longer side; boxes, masks, points and maps follow", default=None
    )
    hold_out: float | None = option("hold out this share of the records, by a hash of their keys", default=None)
    split: str = option("which side of the hold-out to write", default=TRAIN, choices=SIDES)

    def __post_init__(self) -> None:
        for name, bounds in _BOUNDS.items():
            _inside(name, getattr(self, name), *bounds)
        for low, high in _PAIRS:
            _in_order(low, getattr(self, low), high, getattr(self, high))
        tags = (("nsfw", tag, NSFW) for tag in self.nsfw)
        for name, value, known in (("absent", self.absent, ABSENT), ("split", self.split, SIDES), *tags):
            if value not in known:
                raise RequestError(f"{_flag(name)}: expected one of {', '.join(known)}, found {value!r}")
        for language in self.language:
            _known(language)
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise RequestError(f"--hold-out: expected a share above 0 and below 1, found {self.hold_out}")
        if self.hold_out is None and self.split == HELD_OUT:
            raise RequestError(f"--split {HELD_OUT}: expected --hold-out beside it, found none")

    def given(self) -> dict[str, Any]:
        """What is set, by name: a part of the manifest's options."""
        found = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        return found if self.hold_out is None else {**found, "split": self.split}

    def sample(self, source: Source, key: str, row: Row, said: Tally) -> Sample:
        """The row's sample as it is to be written.

        said: takes what is to be noted of the input as a whole, which holds whether or not this row is wanted. Raises Reject where it is
        not wanted or no record, RecordError where it can not be resized.
        """
        self.chosen(key)
        sample = source.sample(row)
        for name in [name for name in sample.counts if name[0] == "notes"]:
            said[name] += sample.counts.pop(name)
        return self.applied(key, row, sample)

    def chosen(self, key: str) -> None:
        """Raises Reject where the key is on the other side of the split: asked before anything is read."""
        if self.hold_out is not None and (found := side(key, self.hold_out)) != self.split:
            raise Reject(SPLIT + found.replace("-", "_"))

    def applied(self, key: str, row: Row, sample: Sample) -> Sample:
        """The sample as it is to be written on either side of the split, filtered and resized. Raises as `sample` does."""
        return self._judged(sample) if self._set else sample

    @cached_property
    def _set(self) -> bool:
        return bool(self.given())

    def _judged(self, sample: Sample) -> Sample:
        self._language(sample.record.language)
        self._text(sample.record)
        self._columns(sample.record)
        refused: dict[int, Reject] = {}
        for at, image in enumerate(sample.record.images):
            try:
                self._picture(image)
                if self.max_side is not None:
                    shrink(sample, at, self.max_side)
            except Reject as reject:
                refused[at] = reject
        return _less(sample, refused) if refused else sample

    def _language(self, found: str | None) -> None:
        if not self.language or not self._stated("language", found):
            return
        if not any(f"{found}-".lower().startswith(f"{wanted}-".lower()) for wanted in self.language):
            raise Reject("curated_language", f"expected {' or '.join(self.language)}, found {found}")

    def _text(self, record: Record) -> None:
        if self.min_text is not None or self.max_text is not None:
            length = sum(len(turn.text()) for turn in record.turns)
            _at_least("min_text", length, self.min_text)
            _at_most("max_text", length, self.max_text)

    def _columns(self, record: Record) -> None:
        """What LAION's columns say of a picture."""
        if not self.nsfw and self.max_punsafe is None and self.max_pwatermark is None:
            return
        meta = msgspec.json.decode(record.meta)
        if self.nsfw and self._stated("nsfw", tag := meta.get("NSFW")) and tag not in self.nsfw:
            raise Reject("curated_nsfw", f"expected {' or '.join(self.nsfw)}, found {str(tag)[:40]}")
        for name, most in (("punsafe", self.max_punsafe), ("pwatermark", self.max_pwatermark)):
            value = meta.get(name)
            if most is not None and self._stated(name, value if isinstance(value, int | float) else None):
                _at_most(f"max_{name}", value, most)

    def _picture(self, image: Image) -> None:
        shorter, longer = sorted((image.width, image.height))
        _at_least("min_side", shorter, self.min_side)
        _at_most("drop_larger", longer, self.drop_larger)
        _at_most("max_aspect", longer / shorter, self.max_aspect)
        _at_least("min_image_bytes", image.bytes, self.min_image_bytes)
        _at_most("max_image_bytes", image.bytes, self.max_image_bytes)
        if self.min_similarity is not None and self._stated("similarity", image.similarity):
            _at_least("min_similarity", image.similarity, self.min_similarity)

    def _stated(self, name: str, value: object) -> bool:
        """Whether there is something to judge. Raises Reject where there is nothing and must be."""
        if value is None and self.absent == "refuse":
            raise Reject(f"{CURATED}no_{name}", f"expected a stated {name}, found none")
        return value is not None


def _at_least(name: str, found: Any, least: float | None) -> None:
    if least is not None and found < least:
        raise Reject(CURATED + name, f"expected at least {least}, found {found}")


def _at_most(name: str, found: Any, most: float | None) -> None:
    if most is not None and found > most:
        raise Reject(CURATED + name, f"expected at most {most}, found {found}")


def _less(sample: Sample, refused: dict[int, Reject]) -> Sample:
    """Without these pictures. Raises the first one's Reject where none is left."""
    if len(refused) == len(sample.record.images):
        raise next(iter(refused.values()))
    for reject in refused.values():
        sample.counts.note("images_dropped", reject.reason)
    return without(sample, refused)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _inside(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise RequestError(f"{_flag(name)}: expected {expected}, found {value}")


def _in_order(low: str, least: float | None, high: str, most: float | None) -> None:
    if least is not None and most is not None and least > most:
        raise RequestError(f"{_flag(low)}: expected at most {_flag(high)}, which is {most}, found {least}")


def _known(language: str) -> None:
    tag = _TAG.fullmatch(language)
    if tag is None or (len(tag[1]) == 2 and tag[1].lower() not in _LANGUAGES):
        raise RequestError(f"--language: expected a BCP 47 code such as en or zh-Hant, found {language[:40]!r}")
