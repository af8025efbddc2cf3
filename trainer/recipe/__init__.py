"""The recipe: what a TOML file may say, and nothing else.

An unknown key is an error that names the file, the key and its nearest neighbour; so is a wrong type or a value out of range. A
relative path is relative to the working directory.
"""

from trainer.recipe.changes import differences, harmless
from trainer.recipe.file import SHIPPED, find, load, shipped
from trainer.recipe.keys import (
    BadRecords,
    Checkpoint,
    Engine,
    Family,
    Flamingo,
    Freeze,
    HeldOut,
    LanguageModel,
    Loader,
    Log,
    Lora,
    Mixture,
    Optimizer,
    ParameterGroup,
    Pictures,
    Precision,
    Projector,
    Recipe,
    Schedule,
    Source,
    Template,
    TokenizerChoice,
    VisionTower,
)
from trainer.recipe.names import nearest
from trainer.recipe.ranges import check
from trainer.recipe.toml import as_toml

__all__ = [
    "SHIPPED",
    "BadRecords",
    "Checkpoint",
    "Engine",
    "Family",
    "Flamingo",
    "Freeze",
    "HeldOut",
    "LanguageModel",
    "Loader",
    "Log",
    "Lora",
    "Mixture",
    "Optimizer",
    "ParameterGroup",
    "Pictures",
    "Precision",
    "Projector",
    "Recipe",
    "Schedule",
    "Source",
    "Template",
    "TokenizerChoice",
    "VisionTower",
    "as_toml",
    "check",
    "differences",
    "find",
    "harmless",
    "load",
    "nearest",
    "shipped",
]
