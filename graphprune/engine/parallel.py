"""Whether the way in which a Trainer uses several devices is one in which pruning can follow it."""

from __future__ import annotations

import os

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from graphprune.errors import DistributedError


def check_launch() -> None:
    """Refuses to begin a whole run, which ends with cutting the model, where processes would hold parts of it.

    Raises:
        DistributedError: for processes that were started for FSDP or DeepSpeed.
    """
    asked = [name for name in ("FSDP", "DEEPSPEED") if _is_on(os.environ.get(f"ACCELERATE_USE_{name}", ""))]
    if asked:
        raise DistributedError(
            f"the processes were started for {asked[0]}, which divides a model among them, and a run ends with cutting "
            "a whole one. Start them with 'accelerate launch --multi_gpu' or torchrun; or use gp.PruneCallback in a "
            "Trainer of your own, which can be followed through FSDP2 and DeepSpeed."
        )


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true", "yes", "on")


def check_parallel(args: TrainingArguments, model: nn.Module) -> None:
    """Refuses what would give wrong scores, or none.

    Copies of the model in several processes (DDP) and parameters that are divided among them (FSDP2, DeepSpeed) can be
    followed.

    Raises:
        DistributedError: for several devices in one process by copies (``DataParallel``), the first FSDP, and tensor
            parallelism.
    """
    if args.n_gpu > 1:
        raise DistributedError(
            f"this process trains copies of the model on {args.n_gpu} devices in threads (DataParallel), which cannot "
            "be observed. Start one process per device with 'accelerate launch' or torchrun, or show it one device "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    parameters = list(model.parameters())
    modules = list(model.modules())
    if any(isinstance(module, FullyShardedDataParallel) for module in modules):
        raise DistributedError(
            "the first FSDP keeps parameters in flat pieces in which units cannot be told apart. Expected its second "
            "version: accelerate launch --fsdp_version 2, or fsdp_version: 2 in the Trainer's fsdp_config."
        )
    divided = [p for p in parameters if isinstance(p, DTensor)]
    if not divided:
        return
    if not any(isinstance(module, FSDPModule) for module in modules):
        raise DistributedError(
            "the model's layers are divided among processes (tensor parallelism), so that each computes a part of "
            "their units and a mask would meet the wrong ones. Expected data parallelism: load it without tp_plan."
        )
    if any(p.device_mesh.ndim > 1 and not p.placements[0].is_replicate() for p in divided):
        raise DistributedError(
            "the model is divided in two ways at once, by FSDP2 and by another kind of parallelism, which cannot be "
            "followed. Expected FSDP2 alone, or with replicas."
        )
