"""LLaVA conversations as their own files say. One item is one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conformance.commands import converted
from tests.conformance.oracle import Expected, Folder, Item, Part, Picture, Said, Sample, json_files

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ROLES |= {"tool": "tool", "function": "tool"}
MARKER = "<image>"


def samples(folder: Path, work: Path) -> Iterator[Sample]:
    """One conversion for every list of conversations, with the pictures in images/."""
    pictures = Folder(folder / "images")
    for path, rows in json_files(folder):
        if isinstance(rows, list) and any("conversations" in row for row in rows):
            items = [item(path.name, number, row, pictures) for number, row in enumerate(rows)]
            yield Sample(converted("llava", ["--annotations", path, "--images", pictures.root], work / path.stem), items, [pictures])


def item(file: str, number: int, row: dict[str, Any], pictures: Folder) -> Item:
    """The record that a row must become."""
    image = row.get("image") or []
    names = [image] if isinstance(image, str) else image
    found = [pictures.picture(name) for name in names]
    kept = [picture for picture in found if picture is not None]
    spoken = row.get("conversations") or []
    markers = sum(turn["value"].count(MARKER) for turn in spoken)
    nothing = Item(file, number, names, None)
    if not spoken or any(turn["from"] not in ROLES for turn in spoken) or row.get("video"):
        return nothing
    if len(names) > 1 and markers not in (0, len(names)):
        return nothing._replace(reason="markers_differ")
    if names and not kept:
        return nothing
    origins = [str(pictures.called(name)) for name, picture in zip(names, found, strict=True) if picture]
    return nothing._replace(expected=Expected(pictures=kept, turns=_turns(spoken, found, markers), origins=origins, id=row.get("id")))


def _turns(spoken: list[dict[str, str]], found: list[Picture | None], markers: int) -> list[Said]:
    places = [None if picture is None else sum(one is not None for one in found[:at]) for at, picture in enumerate(found)]
    if not (found and markers):
        unplaced: list[Part] = [place for place in places if place is not None]
        texts: list[list[Part]] = [[turn["value"]] if turn["value"] else [] for turn in spoken]
        return [Said(ROLES[turn["from"]], (unplaced if at == 0 else []) + texts[at]) for at, turn in enumerate(spoken)]
    order = iter(places if len(places) > 1 else places * markers)
    return [Said(ROLES[turn["from"]], _parts(turn["value"], order)) for turn in spoken]


def _parts(text: str, places: Iterator[int | None]) -> list[Part]:
    """The text cut at its markers, the picture at each; the marker of a picture that is not there is gone."""
    pieces = text.split(MARKER)
    parts: list[Part] = [pieces[0]]
    for piece in pieces[1:]:
        place = next(places)
        if place is None:
            parts[-1] = f"{parts[-1]}{piece}"
        else:
            parts += [place, piece]
    return [part for part in parts if part != ""]
