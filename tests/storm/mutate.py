"""Mutations: what may have happened to a file between its maker and us. A pure function of the bytes, the suffix and a seeded generator.

Half of them know nothing of the format (bytes flip, pages are zeroed, slices are cut out, doubled or swapped, the end is missing); the
others know just enough to get past the first look: a JSON token becomes another, a tar header gets a right checksum again, a zip or gzip is
packed anew around damaged contents, a parquet table has other types or is compressed otherwise.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

PAGE = 4096
BLOCK = 512
TOKENS = [
    "null", "true", "false", "-1", "0", "1", "1.5", "-0.0", "1e999", "-1e308", "1e-400", "NaN", "Infinity", "1e400", "2147483648",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 400,
    '""', '".."', '"../../../etc/passwd"', '"/etc/passwd"', '"a\\u0000b"', '"\\ud800"', '"\\udfff\\ud800"', '"\\n\\r\\t\\u001b[2J"',
    '"' + "x" * 5000 + '"', '"' + "y/" * 3000 + '"', "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000,
    "{}", "[]", "[[]]", "[null]", '{"a": 1}', "[1, 2, 3]", "[0.5, -1, 1e30, NaN]", '"<image>"', '"</s>"', '"1"',
]  # fmt: skip
NAMES = [
    b"", b".", b"..", b"../../escape.jpg", b"/escape.jpg", b"a\nb.jpg", b"x" * 100, b"\xff\xfe.jpg", b"dir/", b".hidden", b"0.jpg",
    b"a.b.c.jpg", b"-rf",
]  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[\[\]{},:]', re.S)

Mutation = Callable[[bytes, random.Random], bytes]


def mutated(data: bytes, suffix: str, chance: random.Random) -> bytes:
    """These bytes, harmed once to three times in ways that fit the file's suffix."""
    ways = BY_SUFFIX.get(suffix, BLIND)
    if chance.random() < 0.5 and ways is not BLIND:
        with contextlib.suppress(*_NOT_POSSIBLE):  # a choice that these bytes do not allow
            data = chance.choice(ways)(data, chance)
        return data if chance.random() < 0.8 else chance.choice(BLIND)(data, chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(BLIND)(data, chance)
    return data


_NOT_POSSIBLE = (
    ValueError,
    IndexError,
    KeyError,
    EOFError,
    OSError,
    tarfile.TarError,
    zipfile.BadZipFile,
    pa.ArrowException,
    NotImplementedError,
)


# Of any file.


def flip(data: bytes, chance: random.Random) -> bytes:
    """One to eight bits."""
    harmed = bytearray(data)
    for _ in range(min(len(data), chance.choice((1, 1, 2, 8)))):
        harmed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(harmed)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    """A few bytes in a row become others, of those that formats give a meaning to as a rule."""
    at, length = _slice(data, chance, 16)
    kind = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b'"', b"[", b"{", b"9", None))
    return data[:at] + (chance.randbytes(length) if kind is None else kind * length) + data[at + length :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    """The end is missing, at a block's edge now and then; or everything."""
    at = chance.choice(
        (0, chance.randrange(len(data) + 1), chance.randrange(len(data) + 1), len(data) // BLOCK * BLOCK // 2, max(0, len(data) - 1))
    )
    return data[:at]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Foreign bytes in between."""
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 3, 100, BLOCK))) + data[at:]


def duplicate(data: bytes, chance: random.Random) -> bytes:
    """A slice stands there twice."""
    at, length = _slice(data, chance, max(1, len(data) // 2))
    return data[: at + length] + data[at:]


def remove(data: bytes, chance: random.Random) -> bytes:
    """A slice is gone."""
    at, length = _slice(data, chance, max(1, len(data) // 4))
    return data[:at] + data[at + length :]


def swap(data: bytes, chance: random.Random) -> bytes:
    """Two slices have changed places."""
    at, length = _slice(data, chance, max(1, len(data) // 4))
    cut = at + length // 2
    return data[:at] + data[cut : at + length] + data[at:cut] + data[at + length :]


def zero(data: bytes, chance: random.Random) -> bytes:
    """A page, or a block, or the rest was never written."""
    size = chance.choice((BLOCK, PAGE, len(data)))
    at = chance.randrange(len(data) + 1) // size * size if len(data) >= size > 0 else chance.randrange(len(data) + 1)
    length = min(size, len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def _slice(data: bytes, chance: random.Random, most: int) -> tuple[int, int]:
    at = chance.randrange(len(data) + 1)
    return at, min(chance.randint(1, most), len(data) - at)


BLIND: tuple[Mutation, ...] = (flip, flip, overwrite, truncate, insert, duplicate, remove, swap, zero)


# Of text that is JSON.


def other_token(data: bytes, chance: random.Random) -> bytes:
    """A token becomes another; a list or an object does as a whole."""
    start, end = _value(data, chance)
    return data[:start] + chance.choice(TOKENS).encode() + data[end:]


def no_token(data: bytes, chance: random.Random) -> bytes:
    """A token is gone."""
    start, end = chance.choice(_tokens(data))
    return data[:start] + data[end:]


def token_again(data: bytes, chance: random.Random) -> bytes:
    """A token, a value, or a field with its value stands there twice."""
    start, end = _value(data, chance)
    before = data.rfind(b'"', 0, start - 1)
    if chance.random() < 0.5 and data[max(0, start - 3) : start].strip().endswith(b":") and before >= 0:
        start = data.rfind(b'"', 0, before)
    return data[:end] + b", " + data[start:end] + data[end:]


def tokens_exchanged(data: bytes, chance: random.Random) -> bytes:
    """Two values have changed places."""
    (a, b), (c, d) = sorted((_value(data, chance), _value(data, chance)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _tokens(data: bytes) -> list[tuple[int, int]]:
    return [found.span() for found in _TOKEN.finditer(data)]


def _value(data: bytes, chance: random.Random) -> tuple[int, int]:
    """Where some value begins and ends: a list or an object up to its bracket."""
    tokens = [(start, end) for start, end in _tokens(data) if data[start:end] not in (b",", b":", b"]", b"}")]
    start, end = chance.choice(tokens)
    if data[start:end] in (b"[", b"{"):
        depth = 0
        for begin, stop in _tokens(data[start:]):
            mark = data[start + begin : start + stop]
            depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
            if not depth:
                return start, start + stop
    return start, end


JSON: tuple[Mutation, ...] = (other_token, other_token, other_token, no_token, token_again, tokens_exchanged)


# Of archives.


def other_header(data: bytes, chance: random.Random) -> bytes:
    """A tar header says something else, and its checksum is right."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        at = chance.choice([member.offset for member in tar.getmembers()])
    header = bytearray(data[at : at + BLOCK])
    field, value = chance.choice(
        [
            ((0, 100), chance.choice(NAMES)),
            ((124, 12), chance.choice((b"77777777777", b"0", b"-1", b"00000000777", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"9999", b"1"))),
            (
                (156, 1),
                chance.choice((b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"g", b"x", b"L", b"K", b"S", b"V", b"M", b"X", b"Z")),
            ),
            ((157, 100), chance.choice(NAMES)),
            ((257, 8), chance.choice((b"ustar  \0", b"ustar\0" + b"00", bytes(8)))),
            ((345, 155), chance.choice(NAMES)),
            ((100, 24), chance.randbytes(24)),
        ]
    )
    start, length = field
    header[start : start + length] = value[:length].ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + BLOCK :]


def other_member(data: bytes, chance: random.Random) -> bytes:
    """A tar whose members are whole, one of them with harmed contents, or twice, or gone, or at another place."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = [(member.name, file.read()) for member in tar.getmembers() if (file := tar.extractfile(member))]
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=chance.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as tar:
        for name, contents in _rearranged(members, chance):
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return stream.getvalue()


def other_file(data: bytes, chance: random.Random) -> bytes:
    """The same of a zip, packed in any of the ways there are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    stream = io.BytesIO()
    way = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(stream, "w") as archive:
        for name, contents in _rearranged(members, chance):
            archive.writestr(zipfile.ZipInfo(name), contents, way)
    return stream.getvalue()


def _rearranged(members: list[tuple[str, bytes]], chance: random.Random) -> list[tuple[str, bytes]]:
    at = chance.randrange(len(members))
    name, contents = members[at]
    suffix = "." + name.rpartition(".")[2]
    change = chance.randrange(5)
    if change == 0:
        members[at] = name, mutated(contents, suffix, chance)
    elif change == 1:
        members[at] = chance.choice(NAMES).decode("latin-1").strip("\0") or "empty", contents
    elif change == 2:
        members.insert(chance.randrange(len(members)), (name, contents))
    elif change == 3:
        del members[at]
    else:
        chance.shuffle(members)
    return members


def packed_again(data: bytes, chance: random.Random) -> bytes:
    """A gzip whose contents are harmed, and whose checksum is right."""
    inside = gzip.decompress(data)
    ways = (other_header, other_member, flip, remove) if inside[257:262] == b"ustar" else (*JSON, flip, remove)
    return gzip.compress(chance.choice(ways)(inside, chance), 1, mtime=0)


# Of tables.


def other_table(data: bytes, chance: random.Random) -> bytes:
    """A parquet file that is whole, and of other columns, types, rows or compression than its readers think."""
    table = pq.read_table(io.BytesIO(data), use_threads=False)
    at = chance.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at).combine_chunks()
    rows = len(table)
    changes: list[Callable[[], pa.Table]] = [
        lambda: table.drop_columns([name]),
        lambda: table.rename_columns([chance.choice(table.column_names) if one == name else one for one in table.column_names]),
        lambda: table.set_column(at, name, pa.nulls(rows)),
        lambda: table.set_column(at, name, pa.array([str(value).encode() + b"\xff" for value in column.to_pylist()], pa.binary())),
        lambda: table.set_column(at, name, pa.array([[str(value)] for value in column.to_pylist()])),
        lambda: table.set_column(at, name, pa.array([str(value) for value in column.to_pylist()]).dictionary_encode()),
        lambda: table.set_column(at, name, pa.array([chance.choice((-1, 0, 2**62)) for _ in range(rows)], pa.int64())),
        lambda: table.set_column(at, name, pa.array([chance.choice((0.0, float("nan"), 1e308)) for _ in range(rows)])),
        lambda: table.set_column(at, name, pa.array([chance.choice((0, -(2**62), 2**62)) for _ in range(rows)], pa.timestamp("ns"))),
        lambda: table.set_column(at, name, pa.array([chance.choice((None, value)) for value in column.to_pylist()], column.type)),
        lambda: table.set_column(at, name, pa.array([json.loads('"\\ud7ff"') + "\0" * 50 for _ in range(rows)])),
        lambda: pa.concat_tables([table, table.slice(chance.randrange(rows))]),
        lambda: table.slice(0, chance.randrange(rows)),
        lambda: table.take(pa.array(chance.sample(range(rows), rows))),
        lambda: table,
    ]  # fmt: skip
    stream = io.BytesIO()
    way = chance.choice(("none", "snappy", "zstd", "gzip", "brotli", "lz4"))
    pq.write_table(
        chance.choice(changes)(),
        stream,
        compression=way,
        row_group_size=chance.choice((1, 2, 1000)),
        data_page_version=chance.choice(("1.0", "2.0")),
    )
    return stream.getvalue()


def not_unicode(data: bytes, chance: random.Random) -> bytes:
    """A string of an uncompressed column is no UTF-8, which no checksum tells."""
    table = pq.read_table(io.BytesIO(data), use_threads=False)
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="none", use_dictionary=chance.random() < 0.5, write_statistics=False)
    harmed = bytearray(stream.getvalue())
    for _ in range(chance.randint(1, 20)):
        harmed[chance.randrange(4, len(harmed) * 2 // 3)] = chance.choice((0xFF, 0x80, 0xC0))
    return bytes(harmed)


BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": JSON,
    ".jsonl": JSON,
    ".tar": (other_header, other_header, other_member),
    ".zip": (other_file,),
    ".gz": (packed_again,),
    ".parquet": (other_table, other_table, not_unicode),
}
