"""Every record of a place through other readers.

python peer_readers.py PLACE=READER,READER ... prints a line a record: [place, reader, key, {suffix: sha256}]. Runs in whatever environment
has the readers; it imports nothing of ours.
"""

# pyright: reportMissingImports=false, reportArgumentType=false

import glob
import hashlib
import json
import os
import sys
import tempfile


def webdataset(place):
    """Sequential."""
    import webdataset as wds

    for sample in wds.WebDataset(sorted(glob.glob(f"{place}/*.tar")), shardshuffle=False, nodesplitter=None):
        yield sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}


def wids(place):
    """By number, from the last to the first, through wids.json."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WIDS_CACHE"] = folder
        import wids

        data = wids.ShardListDataset(f"{place}/wids.json", transformations=[])
        for number in reversed(range(len(data))):
            sample = data[number]
            yield sample["__key__"], {name[1:]: file.read() for name, file in sample.items() if name.startswith(".")}
        data.close()


def energon(place):
    """In training order: CrudeWebdataset, undecoded, through a cooker."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @edataclass
    class Raw(Sample):
        files: dict

    @stateless
    def cook(sample):
        return Raw(**basic_sample_keys(sample), files={name: data for name, data in sample.items() if not name.startswith("__")})

    class Encoder(DefaultTaskEncoder):
        decoder = None
        cookers = (Cooker(cook),)

    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    data = get_train_dataset(
        place,
        worker_config=config,
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
        task_encoder=Encoder(),
    )
    for sample in get_loader(data):
        yield sample.__key__, sample.files


def energon_by_key(place):
    """By key, through index.sqlite."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.itar_reader import SqliteITarEntryReader

    data = SqliteITarEntryReader(base_path=EPath(place), key_is_full_entryname=False)
    for key, _, _ in list(data.list_all_samples()):
        sample = data[key]
        yield sample["__key__"], {name: part for name, part in sample.items() if not name.startswith("__")}


def datasets(place):
    """HF datasets, streaming, through the dataset card."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets as hf

    for row in hf.load_dataset(place, split="train", streaming=True):
        files = {name: value["bytes"] for name, value in row.items() if isinstance(value, dict) and value.get("bytes")}
        yield row["__key__"], files


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        place, _, readers = argument.rpartition("=")
        for reader in readers.split(","):
            for key, files in globals()[reader](place):
                hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
                print("ROW", json.dumps([place, reader, key, hashes]))
