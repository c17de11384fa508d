"""A run in a process of its own that can be killed at any moment, for tests/engine/test_resume.py."""

import hashlib
import importlib
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from graphprune.engine import run as run_module
from graphprune.engine.run import prune

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def make_spec(mode="joint", **training):
    """Several epochs, accumulation, dropout, warm-up: whatever a resumed run could get wrong."""
    usual = {
        "mode": mode,
        "steps": 11,
        "batch_size": 4,
        "micro_batch_size": 2,
        "sequence_length": 12,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.2,
        "save_every": 2,
    }
    return {
        "targets": [{"role": "attention.group", "count": 2}, {"role": "mlp.channel", "ratio": 0.5}],
        "criterion": {"name": "lora", "average": 0.9},
        "schedule": {"every": 2, "warmup": 0.1, "cooldown": 0.1},
        "lora": {"dropout": 0.3},
        "training": {**usual, **training},
    }


def make_model(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,
        intermediate_size=20,
        vocab_size=61,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def make_tokens(seed=0):
    """Token ids of shape (19, 12): four to five steps per epoch."""
    return torch.randint(0, 61, (19, 12), generator=torch.Generator().manual_seed(seed))


def start(folder: Path, spec, die_at: str = "", **options):
    """The process of ``gp.prune`` into ``folder/small``.

    ``die_at`` is ``module:name:n``: the process kills itself when that function is called for the n-th time, or, with
    ``module:name:n:after``, when that call has returned.
    """
    process = _CONTEXT.Process(target=_work, args=(folder, spec, die_at, options))
    process.start()
    return process


def finish(folder: Path, spec, **options) -> int:
    """The exit code of a process that runs to its end, or to its death."""
    process = start(folder, spec, **options)
    process.join(120)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def result(folder: Path):
    """Digests of the weights and the plan that a run has written."""
    names = ("model.safetensors", "plan.json")
    return {n: hashlib.sha256((folder / "small" / n).read_bytes()).hexdigest() for n in names}


def _work(folder, spec, die_at, options):
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    run_module.verify_folder = lambda *arguments, **options: (
        0.0
    )  # seconds for another process, and not the subject here
    if die_at:
        _arm(*die_at.split(":"))
    torch.manual_seed(os.getpid())  # nothing may depend on where the generators were
    prune(
        make_model(),
        spec,
        train_data=make_tokens(),
        output=folder / "small",
        progress=False,
        **{"resume": True, **options},
    )


def _arm(module, name, number, when="before"):
    *path, leaf = name.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    honest, calls = getattr(owner, leaf), []

    def deadly(*arguments, **named):
        calls.append(1)
        last = len(calls) == int(number)
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = honest(*arguments, **named)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(owner, leaf, deadly)
