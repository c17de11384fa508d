"""Reading a checkpoint's config, without running any code that comes with it unless it is trusted."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from graphprune.checkpoint.remote import KEY
from graphprune.errors import CheckpointError
from graphprune.tasks import TASKS, auto_class, check_task, task_of, tasks_for


def read_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a folder, a config file, or a Hub id.

    Raises:
        CheckpointError: if its class comes with the checkpoint and is not trusted; nothing has been executed then.
        Exception: whatever transformers raises where there is no such config, or it is wrong.
    """
    values, _ = PreTrainedConfig.get_config_dict(source)  # reads a file, and runs nothing
    named = values.get("auto_map") or {}
    if "AutoConfig" in named and values.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise CheckpointError(_untrusted(source, named))
    return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


def auto_for(source: str, config: Any, task: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The auto class for a config: that of the task, or by default of the class which the config names.

    Raises:
        CheckpointError: if there is none, or its class comes with the checkpoint and is not trusted.
    """
    if task is None:
        task = task_of(config)
    elif check_task(task) not in tasks_for(config):
        raise CheckpointError(
            f"--task: a config of type '{config.model_type}' is made for {', '.join(tasks_for(config)) or 'no task'}, "
            f"not for '{task}'"
        )
    auto = auto_class(task)
    named = getattr(config, "auto_map", None) or {}
    needed = type(config) not in auto._model_mapping or hasattr(config, KEY)  # stock code would build it whole
    if TASKS[task] in named and needed and not trust_remote_code:
        raise CheckpointError(_untrusted(source, named))
    return auto


def _untrusted(source: str, named: dict[str, Any]) -> str:
    known = {name: ref for name, ref in named.items() if isinstance(ref, str)}
    classes = ", ".join(f"{name} is {ref}" for name, ref in known.items())
    modules = sorted({ref.rpartition(".")[0] for ref in known.values()})
    files = " and ".join(f"{module.rpartition('--')[2]}.py" for module in modules)
    homes = sorted({module.partition("--")[0] for module in modules if "--" in module} or {source})
    return (
        f"'{source}' comes with code of its own ({classes}), and nothing of it was executed. Building the model would "
        f"run {files} from {', '.join(homes)}, with all your rights. Read it; if you trust it, pass "
        "--trust-remote-code (trust_remote_code=True)"
    )
