"""The spec: what to remove, how to judge importance, when to prune, how to train, what to write.

Read by the command line, the Python interface and the documentation alike; YAML comes in through
:func:`graphprune.load_spec`. Only ``targets`` is required.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from graphprune.criterion_spec import CriterionSpec
from graphprune.declared import Groups
from graphprune.fields import Layers, Names, Section, as_tuple


class Target(Section):
    """Some groups and how much of each goes. Exactly one of ``ratio``, ``count`` and ``keep`` is given."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [amount]} for amount in ("ratio", "count", "keep")],
            "anyOf": [{"required": [choice]} for choice in ("role", "name")],
        }
    )

    role: Names | None = Field(
        None, description="Role or roles of the groups, such as mlp.channel; shell wildcards allowed."
    )
    name: str | None = Field(
        None, min_length=1, description="Shell wildcards, or 're:' and a regular expression, on group names."
    )
    layers: Layers | None = Field(
        None, description="Index, list, or slice as text ('3:-1') on the main stack; all layers by default."
    )
    exclude_layers: Layers | None = Field(None, description="Layers to leave alone, written as in 'layers'.")
    exclude: Names | None = Field(None, description="Name patterns of groups to leave alone.")
    ratio: float | None = Field(None, ge=0, lt=1, description="Fraction of the units to remove, in [0, 1).")
    count: int | None = Field(None, ge=0, description="Number of units to remove from every group.")
    keep: int | None = Field(None, ge=1, description="Number of units that every group keeps.")
    multiple_of: int = Field(
        1, ge=1, description="Kept sizes are rounded up to a multiple of this, so never below what was asked."
    )

    @model_validator(mode="after")
    def _check(self) -> Target:
        given = [name for name in ("ratio", "count", "keep") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(f"expected exactly one of ratio, count and keep, got {got}")
        if self.role is None and self.name is None:
            raise ValueError("expected a role or a name pattern that says which groups go, got neither")
        return self

    def kept(self, size: int) -> int:
        """How many of ``size`` units stay: what was asked for, rounded up to ``multiple_of``, at most all.

        ``ratio`` removes ``floor(size·ratio)`` units. The group's own minimum is not looked at.
        """
        if self.ratio is not None:
            # The small constant undoes binary fractions: 0.29 · 100 is 28.999999999999996.
            kept = size - math.floor(size * self.ratio + 1e-9)
        elif self.count is not None:
            kept = max(size - self.count, 0)
        else:
            assert self.keep is not None
            kept = self.keep
        return min(size, math.ceil(kept / self.multiple_of) * self.multiple_of)


class Schedule(Section):
    """How the removed fraction grows over a joint run; the last prune event reaches the target exactly."""

    kind: Literal["cubic", "linear", "one_shot"] = Field(
        "cubic", description="Cubic (LoRAPrune), linear, or everything at once at the end of the warm-up."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps before the first removal.")
    cooldown: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps after the last removal.")
    every: int = Field(10, ge=1, description="Optimizer steps between two prune events.")

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if self.warmup + self.cooldown >= 1:
            raise ValueError(
                f"warmup + cooldown must leave steps to prune in: expected a sum below 1, "
                f"got {self.warmup} + {self.cooldown}"
            )
        return self


class Lora(Section):
    """The low-rank adapters that are trained, and that the ``lora`` criterion reads."""

    r: int = Field(8, ge=1, description="Rank of the factors.")
    alpha: float = Field(16, gt=0, description="The update is scaled by alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the input of the adapters.")
    target_modules: Names | None = Field(
        None,
        description="Module name endings to adapt; by default every linear layer that pruning cuts.",
    )
    use_rslora: bool = Field(False, description="Scale the update by alpha / sqrt(r) instead.")


QuantizationKind = Literal["int8", "nf4", "fp4"]


class Quantization(Section):
    """How the base is quantised by bitsandbytes while it is scored and tuned. What is written is not quantised."""

    kind: QuantizationKind = Field(
        description="int8: 8 bits, one scale per row (LLM.int8). nf4: 4 bits, one scale per 64 values (QLoRA). "
        "fp4: the same with the codes of a tiny float."
    )
    double: bool = Field(True, description="With 4 bits: quantise the scales, too.")
    skip_modules: Names | None = Field(
        None,
        description="Module name endings to leave as they are, beside output layers, routers and tied weights.",
    )

    def __str__(self) -> str:
        return f"{self.kind}, double quantisation" if self.double and self.kind != "int8" else self.kind


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class Training(Section):
    """Whether and how the adapters are trained, and how many batches one-shot scoring looks at."""

    mode: Literal["joint", "separate", "none"] = Field(
        "joint",
        description="joint: prune while tuning (LoRAPrune). separate: score, prune at once, then tune. "
        "none: score and prune at once, no tuning.",
    )
    steps: int = Field(200, ge=1, description="Optimizer steps.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(16, ge=1, description="Sequences per optimizer step, over all processes.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Sequences per forward pass; divides batch_size, which it is by default (shared out where there "
        "are several processes).",
    )
    sequence_length: int = Field(512, ge=2, description="Tokens per sequence.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Fraction of the steps in which the learning rate rises.")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="How the learning rate falls after its warm-up."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient norm to clip to; 0 does not clip.")
    calibration_batches: int = Field(
        10,
        ge=1,
        description="Batches of micro_batch_size sequences for scoring in modes separate and none, in every round.",
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Modes separate and none: score and remove in so many rounds, an equal share in each; every round "
        "scores what is left, on other batches.",
    )
    logging_steps: int = Field(10, ge=1, description="Optimizer steps between two log lines.")
    save_every: int = Field(
        20, ge=0, description="Optimizer steps between two checkpoints, from which a run can be resumed; 0 writes none."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, more time.")
    compact: Literal["auto", "always", "never"] = Field(
        "auto",
        description="joint: whether units are cut out of the model as soon as they go, so that later steps are "
        "cheaper. auto: where that is safe. always: also code 4-bit layers anew, and "
        "refuse to run elsewhere. never: masks until the end.",
    )

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch_size must divide batch_size {self.batch_size}, got {self.micro_batch_size}")
        if self.rounds > 1 and self.mode == "joint":
            raise ValueError(
                f"rounds are for modes separate and none, got {self.rounds} in a joint run. How often that removes "
                "units is schedule.every"
            )
        return self

    @property
    def micro_batch(self) -> int:
        """Sequences per forward pass."""
        return self.micro_batch_size or self.batch_size

    @property
    def accumulation(self) -> int:
        """Forward passes per optimizer step."""
        return self.batch_size // self.micro_batch


class Data(Section):
    """Training and calibration text: exactly one of ``text``, ``jsonl`` and ``dataset``."""

    text: str | None = Field(None, min_length=1, description="A plain text file.")
    jsonl: str | None = Field(None, min_length=1, description="A file with one JSON object per line.")
    dataset: str | None = Field(None, min_length=1, description="A data set: hub id or local folder.")
    subset: str | None = Field(None, description="The configuration of the data set, where it has several.")
    split: str = Field("train", min_length=1, description="The split of the data set.")
    field: str = Field("text", min_length=1, description="The field with the text, in jsonl and data sets.")
    evaluation: str | None = Field(
        None, min_length=1, description="A text file whose perplexity is reported before and after."
    )

    @model_validator(mode="after")
    def _check(self) -> Data:
        given = [name for name in ("text", "jsonl", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(f"expected exactly one of text, jsonl and dataset, got {got}")
        return self


ExportTarget = Literal["hf", "hf-remote-code", "graphprune"]
Runtime = Literal["vllm", "llama.cpp"]


class Export(Section):
    """What the result has to be loadable with, and what is written."""

    targets: Annotated[
        tuple[ExportTarget, ...],
        BeforeValidator(as_tuple, json_schema_input_type=ExportTarget | tuple[ExportTarget, ...]),
    ] = Field(
        ("hf", "hf-remote-code", "graphprune"),
        min_length=1,
        description="Acceptable ways to load the result, best first. hf: stock from_pretrained. hf-remote-code: "
        "from_pretrained with trust_remote_code=True. graphprune: gp.load.",
    )
    multiple_of: int = Field(
        1, ge=1, description="Kept widths of weight matrices are multiples of this, such as 64, 128 or 256."
    )
    tensor_parallel: int = Field(
        1, ge=1, description="Kept heads, channels and experts can be divided among so many devices."
    )
    runtimes: Annotated[
        tuple[Runtime, ...],
        BeforeValidator(as_tuple, json_schema_input_type=Runtime | tuple[Runtime, ...]),
    ] = Field((), description="What is to serve the result; its rules on sizes hold, and 'hf' is the only way to load.")
    merge_lora: bool = Field(True, description="Merge the adapters into the weights before writing.")

    @model_validator(mode="after")
    def _check(self) -> Export:
        if self.runtimes and "hf" not in self.targets:
            raise ValueError(
                f"runtimes {', '.join(self.runtimes)} load stock checkpoints only: expected 'hf' among the targets, "
                f"got {', '.join(self.targets)}"
            )
        return self

    @property
    def acceptable(self) -> tuple[ExportTarget, ...]:
        """The targets, each once, in order; with runtimes only those that these can load."""
        return ("hf",) if self.runtimes else tuple(dict.fromkeys(self.targets))


class PruneSpec(Section):
    """A whole pruning run, as data."""

    targets: tuple[Target, ...] = Field(min_length=1, description="What to remove.")
    groups: Groups = Field((), description="Groups declared by hand, for what tracing cannot see.")
    scope: Literal["layer", "global", "role"] = Field(
        "layer",
        description="Which units compete: those of one group (layer), those of one role in all groups of a "
        "target (role), or all units of a target (global). Beyond layer, sizes differ between layers.",
    )
    coupled: bool = Field(
        True,
        description="Whether all tensors of a group lose the same units. false: each loses its own, an ablation for "
        "modes separate and none whose result can be measured and not written.",
    )
    criterion: CriterionSpec = Field(
        default_factory=lambda: CriterionSpec.model_validate("lora"),
        description="How importance is judged.",
        json_schema_extra={"default": "lora"},
    )
    schedule: Schedule = Field(Schedule(), description="When units go, in a joint run.")
    lora: Lora = Field(Lora(), description="The adapters.")
    quantization: Annotated[
        Quantization | None,
        BeforeValidator(_kind_alone, json_schema_input_type=QuantizationKind | Quantization | None),
    ] = Field(None, description="Quantise the base while it is scored and tuned: a kind, or a kind with options.")
    training: Training = Field(Training(), description="Whether and how to train.")
    data: Data | None = Field(None, description="Text to train and calibrate on; may be given at run time.")
    export: Export = Field(Export(), description="What to write.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything random.")

    @model_validator(mode="after")
    def _check(self) -> PruneSpec:
        against = {
            "training.mode: joint": self.training.mode == "joint",
            "training.rounds above 1": self.training.rounds > 1,
            "quantization": self.quantization is not None,
        }
        clashes = [what for what, present in against.items() if present]
        if not self.coupled and clashes:
            raise ValueError(f"coupled: false is for one-shot pruning in full precision, got {', '.join(clashes)} too")
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of specs, with the options of every registered criterion, for editors."""
    schema = PruneSpec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
