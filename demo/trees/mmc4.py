"""MMC4: zipped shards of JSON documents, and a folder of pictures for each shard. https://github.com/allenai/mmc4"""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from demo import photos
from demo.photos import Deck, View
from demo.trees.tree import Planted, Tree

SHARDS = (0, 7)  # numbers, which their picture folders bear, too

PLANTED = Planted(
    written=18,
    images=36,  # 8 documents with 2 pictures and 8 with 3, less four that are broken; two documents of words have none
    rejected={
        "image_missing": 1,  # the only picture of its document
        "json": 1,  # a line that was cut off
        "schema": 1,  # text_list is a number
    },
    dropped={
        "images_dropped": {"image_missing": 1, "image_truncated": 1, "image_format": 1, "image_empty": 1},
        "mended": {"image_unplaced": 1, "json_nan": 1},
    },
    references=41,
    missing=2,
    unreferenced=1,
)


def write(folder: Path, deck: Deck) -> Tree:
    """The tree, under `folder`."""
    random_ = random.Random(4)
    files: dict[Path, bytes] = {}
    for number in SHARDS:
        documents = [_document(number, at, deck.deal(2 + at % 2), random_) for at in range(8)]
        pictures = {name: data for _, found in documents for name, data in found.items()}
        lines = [json.dumps(document) for document, _ in documents]
        if number == SHARDS[0]:
            lines += _without_pictures()
            _spoil_pictures([document for document, _ in documents], pictures)
        else:
            lines = _spoil_lines([document for document, _ in documents]) + _broken()
            pictures["0000unreferenced.jpg"] = deck.deal(1)[0].bytes()
        files[folder / "shards" / f"docs_no_face_shard_{number}_v2.jsonl.zip"] = _zipped(number, lines)
        files |= {folder / "images" / str(number) / name: data for name, data in pictures.items()}
    photos.write(files)
    return Tree("mmc4", folder, (("--annotations", folder / "shards"), ("--images", folder / "images")))


def _document(shard: int, at: int, views: list[View], random_: random.Random) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A page about its pictures: each is matched to the sentence that is about it, which is not always the next one."""
    text = ["This page collects photographs."]
    for view in views:
        text += [f"This one shows {view.words}."]
    text.append("Thank you for reading.")
    sentences = list(range(1, len(views) + 1))
    random_.shuffle(sentences)
    order = [views[sentence - 1] for sentence in sentences]  # pictures in the order of the page's source, not of its text
    pictures = {_name(view): view.bytes() for view in order}
    matrix = [_similarities(len(text), sentence, random_) for sentence in sentences]
    info = [
        {
            "image_name": name,
            "raw_url": f"http://example.org/{shard}/{at}/{name}",
            "matched_text_index": sentence,
            "matched_sim": row[sentence],
            "face_detections": None,
        }
        for name, sentence, row in zip(pictures, sentences, matrix, strict=True)
    ]
    url = f"http://example.org/{shard}/{at}.html"
    document = {"text_list": text, "url": url, "image_info": info, "similarity_matrix": matrix, "could_have_url_duplicate": 0}
    return document, pictures


def _similarities(sentences: int, best: int, random_: random.Random) -> list[float]:
    """What CLIP would say: a number for every sentence, the largest where the picture belongs."""
    return [round(random_.uniform(0.30, 0.35) if at == best else random_.uniform(0.12, 0.24), 6) for at in range(sentences)]


def _name(view: View) -> str:
    """MMC4 names pictures by a hash of their URL."""
    return hashlib.sha256(repr((view.photo.file, view.crop)).encode()).hexdigest()[:12] + ".jpg"


def _without_pictures() -> list[str]:
    document = {"text_list": ["A page of words.", "It never had a picture."], "image_info": [], "similarity_matrix": []}
    return [json.dumps({**document, "url": "http://example.org/words.html", "could_have_url_duplicate": 0})]


def _spoil_pictures(documents: list[dict[str, Any]], pictures: dict[str, bytes]) -> None:
    """One bad picture of several is dropped; its document is kept."""
    missing, cut, html, empty = (document["image_info"][0]["image_name"] for document in documents[:4])
    del pictures[missing]
    pictures |= {cut: photos.cut_off(pictures[cut]), html: photos.HTML, empty: photos.EMPTY}


def _spoil_lines(documents: list[dict[str, Any]]) -> list[str]:
    """A picture matched to a sentence that is not there stands first; a similarity that is not a number is read as null."""
    documents[0]["image_info"][0]["matched_text_index"] = 99
    documents[1]["similarity_matrix"][0][0] = float("nan")
    return [json.dumps(document) for document in documents]


def _broken() -> list[str]:
    """Lines that can not become records, and one that can, without a picture."""
    lost = {"image_name": "0000deadlink.jpg", "raw_url": "http://example.org/gone.jpg", "matched_text_index": 0, "matched_sim": 0.3}
    alone = {"text_list": ["Its only picture is gone."], "image_info": [lost], "similarity_matrix": [[0.3]]}
    return [
        json.dumps({**alone, "url": "http://example.org/gone.html"}),
        json.dumps({**alone, "url": "http://example.org/cut.html"})[:60],
        json.dumps({"text_list": 7, "image_info": [], "similarity_matrix": []}),
        json.dumps({"text_list": ["Only words, once more."], "image_info": None, "similarity_matrix": None}),
    ]


def _zipped(number: int, lines: list[str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(f"docs_no_face_shard_{number}_v2.jsonl", (2023, 4, 1, 0, 0, 0))
        archive.writestr(member, "\n".join(lines) + "\n")
    return stream.getvalue()
