"""Every key that a recipe may have, with its type and its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Template = Literal["plain", "v1", "chatml", "qwen", "llama2", "llama3", "mistral", "chat", "flamingo"]


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """A folder with a tokenizer.json or tokenizer.model. `form` is how spaces are treated: trainer/text/tokenizer.py."""

    path: str | None = None
    form: Literal["auto", "llama", "file"] = "auto"
    bos: str | None = None  # null: what the folder says
    eos: str | None = None
    add: tuple[str, ...] = ()  # special tokens to add where the folder has none of that name, in this order, behind the last id


@dataclass(frozen=True, kw_only=True)
class Family:
    """Which file of trainer/ the model is built by: trainer/llava.py, trainer/flamingo.py."""

    family: Literal["llava", "flamingo"] = "llava"


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    """A tower of transformers (a folder of weights, or the configuration of a new one), or one of open_clip's by name."""

    weights: str | None = None  # of open_clip: a tag of the name's (openai, laion2b_s32b_b82k), or a file
    config: dict[str, Any] = field(default_factory=dict)
    open_clip: str | None = None  # ViT-L-14
    select_layer: int = -2  # an index into the hidden states; 0 is the patch embedding
    select_feature: Literal["patch", "cls_patch"] = "patch"
    post_norm: bool = False  # the tower's last norm too, where select_layer is -1


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Any causal language model that transformers knows: a folder of weights, or the configuration of a new one.

    A folder may also hold Qwen (the first), or a LLaVA whose language model is wanted: trainer/parts/language.py.
    """

    weights: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Projector:
    """From the tower's width to the language model's."""

    kind: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    weights: str | None = None  # mm_projector.bin, other_params.bin, or a checkpoint that holds a projector


@dataclass(frozen=True, kw_only=True)
class Flamingo:
    """Perceiver resampler and gated cross-attention, where the family is flamingo. The defaults are OpenFlamingo's."""

    every: int = 1  # a cross-attention before every so many layers of the language model
    attend: Literal["immediate", "all"] = "immediate"  # text sees the picture just before it, or all before it
    depth: int = 6  # layers of the resampler
    latents: int = 64  # positions that a picture becomes
    heads: int = 8
    head_width: int = 64
    weights: str | None = None  # OpenFlamingo's checkpoint.pt, or our trained.safetensors


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA on the language model, whose own weights are then frozen. rank = 0: none."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all",)  # last words of module names; all: every linear layer but the head. Qwen's own names work
    weights: str | None = None  # a folder with adapter_model.bin or adapter_model.safetensors to go on from


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Preprocessing. Size, mean and std are the tower's own where they are null."""

    image_aspect_ratio: Literal["square", "pad"] = "square"
    size: int | None = None  # pixels
    mean: tuple[float, ...] | None = None  # of 0..1, red green blue
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters with values of their own; a parameter is in the first group that it fits: trainer/parts/patterns.py."""

    match: str  # projector, language.*.layers.0, *.bias
    lr: float | None = None  # null: the optimizer's
    weight_decay: float | None = None  # of all that fit, biases too; null: what optimizer.decay says of each


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW: trainer/engines/optimizer.py."""

    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Literal["matrices", "transformers", "openflamingo"] = "matrices"  # what decays
    groups: tuple[ParameterGroup, ...] = ()
    max_grad_norm: float = 1.0  # 0: gradients are not clipped


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warmup, then cosine or linear to 0, or constant; counted in optimizer steps."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # of all steps, rounded up; used where warmup_steps is 0


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """The parts that are not trained, and what fits these patterns: trainer/parts/patterns.py."""

    vision: bool = True
    projector: bool = False
    language: bool = False
    match: tuple[str, ...] = ()  # not trained either
    thaw: tuple[str, ...] = ()  # trained all the same


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How a step is drawn from the sources: trainer/data/mixture.py."""

    draw: Literal["every", "one", "mixed"] = "every"
    batch_size: int | None = None  # records per optimizer step, of all sources together, where draw is one or mixed; null: the sources'
    micro_batch_size: int | None = None  # records that a rank holds at once where draw is one or mixed; null: all of its share
    groups: dict[str, Any] = field(default_factory=dict)  # where draw is one: weights of groups; empty: what their sources weigh together
    group_steps: int = 32  # where draw is mixed: records of so many steps are grouped by modality and length; 1: not grouped


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Reading ahead: trainer/data/loader.py."""

    process: bool | None = None  # in a process of its own, beside the one that trains; null: where the device is a GPU
    workers: int = 2  # threads a rank; 0: read when asked
    prefetch: int = 2  # steps that are read ahead
    timeout: float = 600.0  # seconds that a step may be waited for
    cache: str | None = None  # a folder on a local disk, for shards of object storage; shared by the ranks of a machine
    cache_bytes: int = 100 * 2**30
    dct_scaling: bool = True  # JPEGs are decoded at a half, quarter or eighth where that is enough; never under compat


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run goes on from: trainer/run/checkpoint.py."""

    every: int = 1000  # optimizer steps; 0: none
    keep: int = 2  # the newest so many
    trial: bool = True  # one is written, read back and removed behind the first step: a disk that is too small is told then


@dataclass(frozen=True, kw_only=True)
class BadRecords:
    """How many a source may have before the run ends: shards/budget.py."""

    rate: float = 0.01  # of the last 10,000 that a rank has read; and of all, those of shards that are missing or damaged as a whole
    run: int = 32  # so many in a row are one too many


@dataclass(frozen=True, kw_only=True)
class Log:
    """log.jsonl and the plot are always written, and have every step."""

    every: int = 10  # steps from one point on tensorboard and wandb to the next; the last step and what was held out are there, too
    tensorboard: bool = True  # where it is installed
    wandb: bool = False  # WANDB_MODE=offline writes its files and needs no login
    project: str = "shardweave"  # at wandb
    name: str | None = None  # at wandb; null: the run folder's


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a model computes in: trainer/engines/precision.py. Weights that are trained and the optimizer's state are float32."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False  # float32 products of matrices on a GPU, with 10 bits of mantissa
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"  # auto: flash attention on a GPU in 16 bits, if installed


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How the ranks work together: trainer/engines/engine.py."""

    kind: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"  # auto: deepspeed where it is configured, ddp under a launcher
    timeout: float = 600.0  # seconds that a rank waits for the others
    activation_checkpointing: bool = False  # layers of the language model are computed again in the backward pass: less memory
    reshard_after_forward: bool = True  # of fsdp: layers are put away between the passes, too
    cpu_offload: bool = False  # of fsdp: parts, gradients and the optimizer's state are kept in the machine's memory
    deepspeed: str | dict[str, Any] | None = None  # DeepSpeed's configuration: a JSON or YAML file, or a table; null: ZeRO-2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Shards, and how much of a step is theirs."""

    name: str
    shards: str | None = None  # a PLACE
    kind: Literal["shards", "webdataset"] = "shards"  # webdataset: tars made elsewhere, by pattern: trainer/data/webdataset_source.py
    layout: str | None = None  # of webdataset; null: seen from the first sample
    batch_size: int = 16  # records per optimizer step over all ranks, where draw is every
    micro_batch_size: int | None = None  # records that a rank holds at once, where draw is every; null: all of its share
    weight: float | None = None  # where draw is one (null: 1) or mixed (null: as many as it has records)
    group: str | None = None  # where draw is one: a step is of one group; null: a group of its own
    resampled: bool = False  # drawn with replacement, every record at the same rate, instead of in epochs
    epoch_samples: int | None = None  # an epoch is so many of the records; null: all
    window: int = 16  # shards that are open at once: records are permuted within
    loss_multiplier: float = 1.0
    template: Template | None = None  # null: the recipe's
    max_tokens: int | None = None  # null: the recipe's
    task: Literal["interleaved", "caption"] = "interleaved"  # of template flamingo: trainer/text/flamingo_text.py
    min_similarity: float | None = None  # of template flamingo: a picture less like its sentence is left out
    min_images: int = 1  # of template flamingo, interleaved: records with fewer are left out
    max_images: int | None = None  # of template flamingo: the first so many in reading order
    keep_single: float = 1.0  # of template flamingo, interleaved: how often a record with one picture is kept
    flip: float = 0.0  # how often all pictures of a record are mirrored, left to right; refused where it has regions or maps


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Sources whose loss is measured and not trained on: trainer/run/held_out.py."""

    every: int = 0  # optimizer steps, and at the end; 0: only when `evaluate` is called
    records: int = 512  # the first so many of each; 0: all
    batch_size: int = 16  # records in a forward pass
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Every field has a default except where the run needs it: then it is asked for by name."""

    out: str | None = None  # the run folder
    seed: int = 0
    steps: int = 100  # optimizer steps
    device: str = "cpu"
    threads: int = 0  # of torch on the CPU; 0: its own choice
    template: Template = "v1"
    system: str | None = None  # what the template says first; null: its own words
    compat: Literal["none", "llava", "openflamingo", "basicvlm"] = "none"
    max_tokens: int = 2048  # a picture counts as one
    loss_norm: Literal["global", "rank_mean"] = "global"  # what a token's loss is divided by: trainer/run/weighting.py
    model: Family = field(default_factory=Family)
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    vision: VisionTower = field(default_factory=VisionTower)
    projector: Projector = field(default_factory=Projector)
    language: LanguageModel = field(default_factory=LanguageModel)
    flamingo: Flamingo = field(default_factory=Flamingo)
    lora: Lora = field(default_factory=Lora)
    pictures: Pictures = field(default_factory=Pictures)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    freeze: Freeze = field(default_factory=Freeze)
    mixture: Mixture = field(default_factory=Mixture)
    loader: Loader = field(default_factory=Loader)
    bad_records: BadRecords = field(default_factory=BadRecords)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    engine: Engine = field(default_factory=Engine)
    precision: Precision = field(default_factory=Precision)
    held_out: HeldOut = field(default_factory=HeldOut)
    sources: tuple[Source, ...] = ()
