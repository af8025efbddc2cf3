"""From a record's turns to ids and labels: tokenizers, templates, and what the originals did. Imports recipe, weights."""
