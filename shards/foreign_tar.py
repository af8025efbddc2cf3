"""Tars that others wrote: their members and samples, in any dialect (ustar, PAX, GNU), damage named with its offset.

https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13 and https://www.gnu.org/software/tar/manual/html_node/Standard.html.
Other readers take a damaged header for the end of the archive and stop without a word; here the tar has to end in its block of zeros, and
in nothing but zeros. Samples are grouped as webdataset does it: adjacent members that share their name up to the first dot of the last
component. Names are only names: nothing is ever unpacked, links and devices are passed over and counted.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from shards.ustar import BLOCK

Tar = bytes | mmap.mmap
MAX_EXTENSION = 1 << 20  # bytes of a PAX or long-name header
_STEP = 1 << 20
_SPLIT = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")
_KINDS = {b"1": "hard_link", b"2": "symbolic_link", b"3": "device", b"4": "device", b"5": "directory", b"6": "fifo"}
_NO_DATA = frozenset(_KINDS)
_FILES = (b"0", b"\0", b"7")


class TarDamage(ValueError):
    """Where a tar is not one."""

    def __init__(self, offset: int, expected: str, found: str) -> None:
        self.offset, self.expected, self.found = offset, f"{expected} at byte {offset}", found
        super().__init__(f"expected {self.expected}, found {found}")


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str  # bytes that are no UTF-8 are escaped as in Python's file names
    start: int  # of its first header, extended ones included
    offset: int  # of its payload
    size: int

    @property
    def end(self) -> int:
        """Behind its padding."""
        return self.offset + self.size + -self.size % BLOCK


class TarSample(NamedTuple):
    """Adjacent members with one key."""

    key: str
    members: list[tuple[str, Member]]  # suffix in lower case, member

    @property
    def start(self) -> int:
        """Where its first header begins."""
        return self.members[0][1].start

    @property
    def end(self) -> int:
        """Behind its last member."""
        return self.members[-1][1].end


def samples(tar: Tar, ignored: Counter[str]) -> Iterator[TarSample]:
    """The samples in order; what belongs to none is counted in `ignored`, by reason. Raises TarDamage behind the last whole member."""
    found: TarSample | None = None
    for member in members(tar, ignored):
        parted = split(member.name)
        if parted is None or _META.match(member.name):
            ignored["meta_name" if parted else "no_key"] += 1
            continue
        key, suffix = parted
        if found is None or found.key != key:
            if found is not None:
                yield found
            found = TarSample(key, [])
        found.members.append((suffix, member))
    if found is not None:
        yield found


def split(name: str) -> tuple[str, str] | None:
    """A member's key, up to the first dot of the last component, and its suffix in lower case. None where it has no key."""
    parted = _SPLIT.match(name)
    return (parted[1], parted[2].lower()) if parted else None


def members(tar: Tar, ignored: Counter[str]) -> Iterator[Member]:
    """The regular files in order; others are counted in `ignored`, by kind. Raises TarDamage behind the last whole one."""
    at, start, always, said = 0, 0, {}, {}
    while any(block := tar[at : at + BLOCK]):
        kind, size = _checked(block, at, tar), _size(block, always | said)
        if size < 0:
            raise TarDamage(at, "a member's size", repr(block[124:136]))
        offset, at = at + BLOCK, at + BLOCK + (0 if kind in _NO_DATA else size + -size % BLOCK)
        if at > len(tar):
            raise TarDamage(offset, f"{size} bytes of a member", f"the end of the file at {len(tar)}")
        if kind in b"xXgLK":
            always, said = _extended(tar, kind, offset, size, always, said)
            continue
        name = (always | said).get("path") or _name(block)
        if kind in _FILES and not (kind != b"0" and name.endswith(b"/")):
            yield Member(name.decode("utf-8", "surrogateescape"), start, offset, size)
        else:
            ignored[_KINDS.get(kind, "directory" if kind in _FILES else "other_kind")] += 1
        start, said = at, {}
    _ended(tar, at)


def _checked(block: bytes, at: int, tar: Tar) -> bytes:
    """The member's kind, if this is a header."""
    if len(block) < BLOCK:
        raise TarDamage(at, "a whole header", f"the end of the file at {len(tar)}")
    if at == 0 and block[:2] == b"\x1f\x8b":
        raise TarDamage(at, "a tar header", "gzip: a compressed tar has no random access, unpack it first")
    stated, rest = _number(block[148:156]), block[:148] + b" " * 8 + block[156:]
    if stated not in (sum(rest), sum(byte - 256 if byte > 127 else byte for byte in rest)):  # some old tars add signed bytes
        raise TarDamage(at, "a tar header", f"another checksum than the stated {block[148:156]!r}")
    if block[156:157] == b"S":
        raise TarDamage(at, "a plain file", "a GNU sparse file")
    return block[156:157]


def _ended(tar: Tar, at: int) -> None:
    """Raise TarDamage unless there is a block of zeros, and nothing but zeros behind it."""
    if len(tar) < at + BLOCK:
        raise TarDamage(at, "a header or the closing block of zeros", f"the end of the file at {len(tar)}")
    for begin in range(at, len(tar), _STEP):
        step = tar[begin : begin + _STEP]
        if behind := len(step.lstrip(b"\0")):
            raise TarDamage(begin + len(step) - behind, f"nothing but zeros behind the closing block at {at}", "more bytes")


def _extended(
    tar: Tar, kind: bytes, offset: int, size: int, always: dict[str, bytes], said: dict[str, bytes]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What is said of all members from here on, and of the next one."""
    if size > MAX_EXTENSION:
        raise TarDamage(offset, f"an extended header of at most {MAX_EXTENSION} bytes", f"one of {size}")
    data = tar[offset : offset + size]
    if kind == b"L":
        return always, said | {"path": data.split(b"\0", 1)[0]}
    if kind == b"K":
        return always, said
    found = _pax(data, offset)
    return (always | found, said) if kind == b"g" else (always, said | found)


def _pax(data: bytes, offset: int) -> dict[str, bytes]:
    """Records of `LENGTH KEY=VALUE\\n`."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : at + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if length <= len(digits) + 1 or not equals or at + length > len(data) or data[at + length - 1] != 10:
            raise TarDamage(offset + at, "a PAX record", repr(data[at : at + 40]))
        if key.startswith(b"GNU.sparse"):
            raise TarDamage(offset + at, "a plain file", "a GNU sparse file")
        if key in (b"path", b"size"):  # a header may have a hundred thousand others, and be in force for as many members
            found[key.decode()] = value
        at += length
    return found


def _size(block: bytes, said: dict[str, bytes]) -> int:
    size = said.get("size", b"")
    return int(size) if size.isdigit() and len(size) < 20 else _number(block[124:136])


def _number(field: bytes) -> int:
    """Octal, or base 256 where the first bit is set. Below 0 where it is none."""
    if field[:1] >= b"\x80":
        return int.from_bytes(field[1:], "big") if field[:1] == b"\x80" else -1
    digits = field.split(b"\0", 1)[0].strip(b" ")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else -1


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name
