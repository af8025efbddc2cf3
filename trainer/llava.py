"""LLaVA: a vision tower, a projector, a causal language model; the pictures' patches stand in the row of tokens.

Liu et al. 2023, https://arxiv.org/abs/2304.08485 and https://arxiv.org/abs/2310.03744. Basic-VLM
(https://github.com/xinyanghuang7/Basic-Visual-Language-Model) is this family with a Qwen, a SigLIP and LoRA.

Axes: B rows, T tokens, S spliced positions, N pictures, P patches, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from trainer.data.batch import Batch
from trainer.model import Model
from trainer.parts import language as languages
from trainer.parts import lora, tower
from trainer.parts.splice import Spliced, splice
from trainer.recipe import Projector, Recipe, VisionTower
from trainer.text.positions import Positions
from trainer.weights import files, llava_names


class LlavaModel(Model):
    """Three parts, called vision, projector and language; these are the first words of its parameters' names."""

    def __init__(self, vision: nn.Module, projector: nn.Module, language: nn.Module, choice: VisionTower, longest: int, skip: int) -> None:
        super().__init__()
        self.vision, self.projector, self.language = vision, projector, language
        self.choice, self.longest, self.skip = choice, longest, skip

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, S, V) and labels (B, S), not shifted, after the pictures are spliced in."""
        spliced = self.spliced(batch)
        out = self.language(inputs_embeds=spliced.embeds_BSD, attention_mask=spliced.mask_BS, use_cache=False)
        return out.logits, spliced.labels_BS

    def spliced(self, batch: Batch) -> Spliced:
        """What the language model sees."""
        embed = cast(Any, self.language).get_input_embeddings()
        pixels_NCHW = batch.pixels_NCHW
        if pixels_NCHW is None:  # a blank picture that no token shows: the parts that are trained get a gradient, of zeros
            size = tower.image_size(self.vision)
            pixels_NCHW = torch.zeros(1, 3, size, size, device=batch.ids_BT.device)
        features_NPD = self.features(pixels_NCHW)
        return splice(batch.ids_BT, batch.labels_BT, batch.mask_BT, embed, features_NPD, self.longest)

    def features(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Projected patches (N, P, D) of the chosen hidden layer."""
        return self.projector(tower.patches(self.vision, pixels_NCHW, self.choice)[:, self.skip :])

    @torch.no_grad()
    def generate(self, batch: Batch, **options: Any) -> torch.Tensor:
        """Ids (B, T) that go on from each row."""
        spliced = self.spliced(batch)
        lengths = spliced.mask_BS.sum(1).tolist()
        rows = [row[:length].flip(0) for row, length in zip(spliced.embeds_BSD, lengths, strict=True)]
        embeds_BSD = pad_sequence(rows, batch_first=True).flip(1)  # padded in front: what follows stands at the end of each row
        mask_BS = spliced.mask_BS.flip(1)
        return cast(Any, self.language).generate(inputs_embeds=embeds_BSD, attention_mask=mask_BS, **options)

    @property
    def patches(self) -> int:
        """Positions that a picture takes."""
        return tower.patch_count(self.vision, self.choice) - self.skip

    @property
    def fit(self) -> Positions:
        """A picture's patches take a position each."""
        return Positions(longest=self.longest, patches=self.patches)

    def layers(self) -> list[nn.Module]:
        """The layers of the language model."""
        return list(languages.layers(self.language)[1])


def build(recipe: Recipe, vocabulary: int, specials: Mapping[str, int]) -> LlavaModel:
    """The model of a recipe, its frozen parts without gradients; it needs no special token. Raises RequestError."""
    vision = tower.build(recipe.vision)
    language = languages.fits(languages.build(recipe.language, vocabulary), vocabulary)
    projector = _projector(recipe.projector, tower.width(vision), language.get_input_embeddings().embedding_dim)
    for part, frozen in ((vision, recipe.freeze.vision), (projector, recipe.freeze.projector), (language, recipe.freeze.language)):
        part.requires_grad_(not frozen)
    if recipe.lora.rank:
        lora.put(language, recipe.lora)
    # LLaVA cuts to max_tokens a second time; by default nothing is lost that the model has positions for.
    longest = recipe.max_tokens if recipe.compat == "llava" else languages.positions(language)
    # Basic-VLM takes the first patch for a class token, which SigLIP does not have.
    return LlavaModel(vision, projector, language, recipe.vision, longest, skip=int(recipe.compat == "basicvlm"))


def _projector(choice: Projector, wide: int, narrow: int) -> nn.Module:
    """Its keys are those of LLaVA's checkpoints: 0 and 2 for the two layers, none for the one."""
    linear = nn.Linear(wide, narrow)
    projector = linear if choice.kind == "linear" else nn.Sequential(linear, nn.GELU(), nn.Linear(narrow, narrow))
    if choice.weights is not None:
        files.load(projector, llava_names.projector_tensors(files.read(choice.weights), choice.weights), choice.weights)
    return projector
