"""What models are made of: towers, language models, LoRA. Imports recipe, weights, text, data."""
