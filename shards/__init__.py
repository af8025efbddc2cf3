"""Tar shards of records: write, index, read and check them. Imports schemas.

data = shards.open("places/coco")         a finished data set
len(data), data[7], data.get(key)         its records, by number and by key
for sample in data: sample.record, sample.image(0)
shards.write("places/mine", items)        one from any iterator of (record, pictures, maps)
"""

import schemas  # isort: skip  # noqa: F401 - minds Ctrl-C while the others are imported
from shards.reader import Sample, Shard, Shards, open
from shards.write import write

__all__ = ["Sample", "Shard", "Shards", "open", "write"]
