"""What img2dataset really wrote, indexed in place: every sample of its tars is a record, with its picture and its caption."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import shards
from shards import foreign
from shards.check import check


def members(path: Path) -> dict[str, bytes]:
    """The files of a tar by name."""
    with tarfile.open(path) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}


def test_img2dataset_s_own_output_is_indexed_and_sound(data: Path, tmp_path: Path) -> None:
    folders = sorted({path.parent for path in data.glob("laion/*/*_stats.json")})
    if not folders:
        pytest.skip("no img2dataset output in the folder of upstream samples")
    for number, folder in enumerate(folders):
        place = Path(shutil.copytree(folder, tmp_path / str(number), copy_function=shutil.copyfile))
        place.chmod(0o755)
        made = foreign.index(place)
        assert made.problems == []
        assert check(place, deep=True).problems == []
        found = {json.loads(sample.record.meta)["id"]: sample for sample in shards.open(place)}
        contents = {name: content for path in place.glob("*.tar") for name, content in members(path).items()}
        assert sorted(found) == sorted(name.removesuffix(".json") for name in contents if name.endswith(".json"))
        for key, sample in found.items():
            row = json.loads(contents[f"{key}.json"])
            assert bytes(sample.image(0)) == contents[f"{key}.jpg"]
            assert sample.record.images[0].origin == row["url"]
            assert sample.record.turns[0].text() == row["caption"]
