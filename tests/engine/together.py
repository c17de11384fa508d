"""Trainings with pruning that several processes do together, for tests/engine/test_parallel.py; run as a script.

    python -m torch.distributed.run --nproc-per-node 2 tests/engine/together.py FOLDER

FOLDER holds ``jobs.json``, a JSON object of jobs by name; what process 0 found goes to ``found0``, and so on.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from graphprune.engine.adapters import attach
from graphprune.engine.callback import PruneCallback
from graphprune.engine.data import load_blocks
from graphprune.errors import GraphPruneError
from graphprune.names import bare
from graphprune.schema import Lora, PruneSpec
from graphprune.trace import trace
from graphprune.validate import resolve_targets
from tests.decoders import tiny
from tests.engine.conftest import VOCAB, make_llama

ROOT = Path(__file__).parents[2]
START = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_machines=1", "--mixed_precision=no"]
    + ["--dynamo_backend=no", "--main_process_port=0", "--num_processes"],
}


def started(folder, *command, launcher="torchrun", processes=2):
    """A finished launcher of ``command``, which starts with a script or with ``-m MODULE``."""
    if launcher == "torchrun":
        command = [*command] if command[0] != "-m" else ["-m", *command[1:]]
    start = [sys.executable, "-m", *START[launcher], str(processes), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)


def launch(jobs, folder, **options):
    """What every process found, in the order of their ranks: by the name of the job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = started(folder, __file__, str(folder), **options)
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(file, weights_only=False) for file in sorted(folder.glob("found*"))]


def work(job, folder):
    """One training, as in a user's script."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    spec = PruneSpec.model_validate(job["spec"])
    model: nn.Module = make_llama() if job.get("model") is None else tiny(job["model"])
    graph = trace(model)
    if job.get("divided") == "loaded":
        model = loaded_in_parts(model, folder)
    torch.manual_seed(job.get("seed", 3))
    if job.get("adapters", True):
        model = attach(model, graph, [g for t in resolve_targets(spec, graph) for g in t.groups], Lora(r=4, dropout=0))
    if job.get("divided") == "later":
        divide(model)
    if job.get("spoilt"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + int(os.environ.get("RANK", "0")))
    tokens = torch.randint(0, VOCAB, (24, 16), generator=torch.Generator().manual_seed(0))
    callback = PruneCallback(spec, None if job.get("divided") else graph)
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=job.get("steps", 4),
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        learning_rate=1e-2,
        **{"save_strategy": "no", **job.get("options", {})},
    )
    data = load_blocks(tokens, sequence_length=16)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except GraphPruneError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "world": arguments.world_size,
        "plan": callback.plan.removed,
        "scores": callback.scores,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "streamed": callback._observer is not None and callback._observer._scores is not None,
    }


def loaded_in_parts(model, folder):
    """FSDP2 by transformers itself, which divides a model while it loads it; adapters come later and are whole."""
    from transformers.distributed import DistributedConfig

    meet()
    place = folder / f"whole{os.environ['RANK']}"
    model.save_pretrained(place)
    config = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))
    return type(model).from_pretrained(place, distributed_config=config)


def meet():
    from transformers import TrainingArguments

    _ = TrainingArguments(use_cpu=True, output_dir="unused").device


def divide(model):
    """FSDP2 of a model with its adapters, as Accelerate does it on accelerators; here on CPUs."""
    from torch.distributed.fsdp import fully_shard

    meet()
    for layer in next(m for m in model.modules() if isinstance(m, nn.ModuleList)):
        fully_shard(layer)
    fully_shard(model)
    bare(model)._is_distributed_loading_by_transformers = bare(model)._is_fsdp_managed_module = True
    model.config.distributed_config = SimpleNamespace(dp_replicate_size=1)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    found = {name: work(job, place) for name, job in json.loads((place / "jobs.json").read_text()).items()}
    torch.save(found, place / f"found{os.environ.get('RANK', '0')}")
