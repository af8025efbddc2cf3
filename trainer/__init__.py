"""Trains vision-language models from shards: recipe -> draws -> rendering -> model -> steps. README.md is the map."""
