"""LLaVA: one JSON list of conversations, as in llava_v1_5_mix665k.json. https://github.com/haotian-liu/LLaVA/blob/main/docs/Data.md"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import photos
from demo.photos import Deck, View, side
from demo.trees.tree import Planted, Tree, as_json

PLANTED = Planted(
    written=26,  # 16 + 2 of OCR-VQA + 3 odd files + 1 without marker + 2 of two pictures + 2 of text
    images=26,  # two rows have two, two have none
    rejected={
        "image_missing": 1,
        "image_truncated": 1,
        "image_format": 1,
        "image_empty": 1,
        "markers_differ": 1,  # two pictures, three markers
        "json": 1,  # a row that is no JSON
        "role": 1,  # nobody knows who speaks
    },
    dropped={
        "mended": {"image_unplaced": 1, "other_suffix": 2},
        "notes": {"no_meta": 23, "repeated_id": 1},  # the meta file knows three of the rows
    },
    references=33,
    missing=1,
    other_suffix=2,
    unreferenced=1,
)

Row = dict[str, Any]
TALK = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a sentence about photographs.", "A photograph keeps a moment that has passed."),
)


def write(folder: Path, deck: Deck) -> Tree:
    """The tree, under `folder`."""
    images = folder / "images"
    files: dict[Path, bytes] = {}
    rows: list[Row] = []
    for at, view in enumerate([*deck.deal_with(2, 6), *deck.deal(10)]):
        rows.append(_row(at, f"coco/train2017/{at:012d}.jpg", view, last=at % 3 == 0))
        files[images / rows[-1]["image"]] = view.bytes()
    for adder in (_ocr_vqa, _odd_files, _two_pictures, _broken):
        found, more = adder(deck)
        rows += found
        files |= {images / name: data for name, data in more.items()}
    rows += [{"id": f"talk_{at}", "model": "", "conversations": _turns(*said)} for at, said in enumerate(TALK)]
    rows[1]["id"] = rows[0]["id"]  # ids repeat upstream, too
    files[images / "coco/train2017/nobody.jpg"] = deck.deal(1)[0].bytes()
    files[folder / "mix.json"] = _list(rows)
    files[folder / "meta.json"] = as_json(
        [{"id": row["id"], "image": row["image"], "url": "http://example.org/0.jpg"} for row in rows[2:5]]
    )
    photos.write(files)
    inputs = (("--annotations", folder / "mix.json"), ("--meta", folder / "meta.json"), ("--images", images))
    return Tree("llava", folder, inputs)


def _list(rows: list[Row]) -> bytes:
    """The file: with a row that is no JSON, and a comma before the last bracket, as in upstream's own example."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines.insert(4, '{"id": "cut", "conversations": [{"from": "human", "value": undefined}]}')
    return ("[\n" + "".join(f"{line},\n" for line in lines) + "]\n").encode()


def _row(number: int, image: Any, view: View, *, last: bool = False) -> Row:
    """A conversation about a picture: the marker first or last, and a second question where there are two things to tell apart."""
    question = "What does the picture show?"
    said = [f"{question}\n<image>" if last else f"<image>\n{question}", view.captions()[number % 3]]
    if len(view.things) > 1:
        one, other = view.things[:2]
        said += [f"Where is the {one.name}?", f"It is {side(one, other)} the {other.name}."]
    return {"id": f"{number:012d}", "image": image, "conversations": _turns(*said)}


def _turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(said)]


Added = tuple[list[Row], dict[str, bytes]]


def _ocr_vqa(deck: Deck) -> Added:
    """The list says .jpg of what was saved as it came."""
    one, other = deck.deal(2)
    rows = [_row(1000, "ocr_vqa/images/1000.jpg", one), _row(1001, "ocr_vqa/images/1001.jpg", other)]
    return rows, {"ocr_vqa/images/1000.png": one.bytes("PNG"), "ocr_vqa/images/1001.gif": other.bytes("GIF")}


def _odd_files(deck: Deck) -> Added:
    """Pictures that are what they are: known by their bytes, stored untouched. The last has no marker in its row."""
    views = deck.deal(4)
    files = {
        "odd/gif_saved_as.jpg": views[0].bytes("GIF"),
        "odd/cmyk.jpg": _as(views[1], lambda picture: picture.convert("CMYK"), "JPEG"),
        "odd/palette.png": _as(views[2], lambda picture: picture.convert("P"), "PNG"),
        "odd/no_marker.webp": views[3].bytes("WEBP"),
    }
    rows = [_row(1100 + at, name, view) for at, (name, view) in enumerate(zip(files, views, strict=True))]
    rows[-1]["conversations"][0]["value"] = "What does the picture show?"
    return rows, files


def _as(view: View, changed: Callable[[Any], Any], format: str) -> bytes:
    stream = io.BytesIO()
    changed(view.picture).save(stream, format)
    return stream.getvalue()


def _two_pictures(deck: Deck) -> Added:
    """As LLaVA-NeXT has them: markers where they stand."""
    rows, files = [], {}
    for number in (1200, 1201):
        pair = deck.deal(2)
        names = [f"pairs/{number}_{at}.jpg" for at in range(2)]
        question = "Here is one picture: <image> Here is another: <image>\nWhat do they show?"
        answer = f"The first shows {pair[0].words}, the second {pair[1].words}."
        rows.append({"id": number, "image": names, "conversations": _turns(question, answer)})
        files |= {name: view.bytes() for name, view in zip(names, pair, strict=True)}
    return rows, files


def _broken(deck: Deck) -> Added:
    """Rows that can not become records."""
    views = deck.deal(4)
    files = {
        "broken/cut.jpg": photos.cut_off(views[0].bytes()),
        "broken/html.jpg": photos.HTML,
        "broken/empty.jpg": photos.EMPTY,
        "broken/one.jpg": views[1].bytes(),
        "broken/two.jpg": views[2].bytes(),
        "broken/role.jpg": views[3].bytes(),
    }
    names = ("broken/missing.jpg", *list(files)[:3])
    rows = [_row(1300 + at, name, views[0]) for at, name in enumerate(names)]
    said = _turns("<image> and <image> and <image>", "Three markers, two pictures.")
    rows.append({"id": "1304", "image": ["broken/one.jpg", "broken/two.jpg"], "conversations": said})
    rows.append(_row(1305, "broken/role.jpg", views[3]))
    rows[-1]["conversations"][0]["from"] = "stranger"
    return rows, files
