"""Trains vision-language models from shards: recipe -> draws -> rendering -> model -> steps. README.md is the map."""

import schemas  # noqa: F401 - minds Ctrl-C while the others are imported
