"""From upstream annotation files to records; README.md is the map."""

import schemas  # noqa: F401 - minds Ctrl-C while the others are imported
