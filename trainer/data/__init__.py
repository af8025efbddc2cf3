"""From draws to batches: the mixture, the loader, pictures. Imports recipe, text."""
