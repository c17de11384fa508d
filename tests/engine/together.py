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
from safetensors.torch import save_file
from torch import nn

from graphprune import processes
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
#: Only Accelerate's way for GPUs starts several processes on one machine; they find out what there is.
START = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
    "--dynamo_backend=no --main_process_port=0".split(),
}


def start(folder, *command, launcher="torchrun"):
    """A running launcher of ``command``, which begins with a script or with ``-m MODULE``."""
    words = [sys.executable, "-m", *START[launcher], *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=folder, env=environment, text=True, **pipes)


def started(folder, *command, **options):
    """The same, when it is done."""
    process = start(folder, *command, **options)
    out, error = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def launch(jobs, folder, **options):
    """What every process found, in the order of their ranks: by the name of the job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = started(folder, __file__, str(folder), **options)
    assert done.returncode == 0, _of_failure(done.stderr)
    return [torch.load(file, weights_only=False) for file in sorted(folder.glob("found*"))]


def _of_failure(text):
    """The lines of the first process that failed, where the launcher marks them; what else it says is of no help."""
    return "\n".join(line for line in text.splitlines() if line.startswith("[rank0]"))[-3000:] or text[-5000:]


def work(job, folder):
    """One training, as in a user's script."""
    from transformers import PrinterCallback, Trainer, TrainingArguments
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # of the job before, in whose parts this model would be made
    spec = PruneSpec.model_validate(job["spec"])
    model: nn.Module = make_llama() if job.get("model") is None else tiny(job["model"])
    graph = trace(model)
    zero = job.get("deepspeed")
    if job.get("divided") == "loaded":
        model = loaded_in_parts(model, folder) if zero is None else loaded_by_deepspeed(model, folder, zero)
    torch.manual_seed(job.get("seed", 3))
    if job.get("adapters", True):
        model = attach(model, graph, [g for t in resolve_targets(spec, graph) for g in t.groups], Lora(r=4, dropout=0))
    if job.get("divided") == "later":
        divide(model)
    rank = int(os.environ.get("RANK", "0"))
    if job.get("spoilt") == "spec":
        spec = spec.model_copy(update={"schedule": spec.schedule.model_copy(update={"every": 1 + rank})})
    tokens = torch.randint(0, VOCAB, (24, 16), generator=torch.Generator().manual_seed(0))
    callback = PruneCallback(spec, None if job.get("divided") else graph, checkpoint=job.get("resume"))
    if job.get("spoilt") == "scores":
        processes.mean = lambda values: [value * ((-1) ** rank) for value in values]
    arguments = TrainingArguments(
        max_steps=job.get("steps", 4),
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        learning_rate=1e-2,
        **{"output_dir": str(folder / "out"), "save_strategy": "no", **job.get("options", {})},
        **({} if zero is None else {"deepspeed": deepspeed_config(zero)}),
    )
    data = load_blocks(tokens, sequence_length=16)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=job.get("resume"))
    except GraphPruneError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if job.get("save"):
        trainer.save_model(str(folder / job["save"]))
    seen = callback._observer
    return {
        "world": arguments.world_size,
        "plan": callback.plan.removed,
        "scores": callback.scores,
        "notes": callback.notes,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "recorder": None if seen is None else type(seen._scores or seen._gradients).__name__,
    }


def loaded_in_parts(model, folder):
    """FSDP2 by transformers itself, which divides a model while it loads it; adapters come later and are whole."""
    from transformers.distributed import DistributedConfig

    meet()
    place = folder / f"whole{os.environ['RANK']}"
    model.config.save_pretrained(place)
    save_file(model.state_dict(), place / "model.safetensors", metadata={"format": "pt"})
    config = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))
    return type(model).from_pretrained(place, distributed_config=config)


def loaded_by_deepspeed(model, folder, stage):
    """Divided by DeepSpeed while it is loaded, as transformers does where it knows the config before."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    meet()
    deepspeed.init_distributed("gloo")
    place = folder / f"whole{os.environ['RANK']}"
    model.config.save_pretrained(place)
    save_file(model.state_dict(), place / "model.safetensors", metadata={"format": "pt"})
    sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 2, "gradient_accumulation_steps": 1}
    config = HfDeepSpeedConfig({**deepspeed_config(stage), **sizes})
    loaded = type(model).from_pretrained(place)
    assert config.is_zero3() and not next(loaded.parameters()).numel()
    return loaded


def deepspeed_config(stage):
    """One that leaves to the Trainer what it can; nothing is small enough to be kept whole."""
    zero = {
        "stage": stage,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_param_persistence_threshold": 0,
    }
    sizes = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    return {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(sizes, "auto")}


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
