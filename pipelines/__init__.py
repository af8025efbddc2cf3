"""From upstream annotation files to records; README.md is the map."""

import os

import schemas  # noqa: F401 - minds Ctrl-C while the others are imported

# Before pyarrow is imported, for workers too: its own allocator keeps 40 MB a process for the 5 that an index takes.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
