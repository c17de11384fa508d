"""What it takes to trace published models without their weights: a table of docs/results.md.

    python benchmarks/tracing.py

Each config is built on the meta device and traced in a process of its own. ``forward`` are the same forward passes on
fake tensors without the tracer, in the same process; ``cost`` is trace over forward, the number that a busy machine
changes least. Memory is the peak of the whole process, of which ``imports`` is what Python and the libraries take.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 40,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "vocab_size": 97,
}  # fmt: skip


def peak() -> float:
    """The peak of this process's memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def forwards(model: Any) -> None:
    """The passes that ``trace`` runs, on fake tensors, with nobody watching."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from graphprune.trace.inputs import calls_of
    from graphprune.trace.run import _prepared
    from graphprune.trace.substitutes import fake, untouched

    with untouched(model), _prepared(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        tensors = {n: fake(t) for n, t in (*model.named_parameters(), *model.named_buffers())}
        for call in calls_of(model, None):
            torch.func.functional_call(model, tensors, (), call.map(fake).kwargs)


def one(file: str) -> dict[str, Any]:
    """Builds and traces the config in ``file``."""
    from graphprune.cli.models import structure
    from graphprune.trace import trace

    imports = peak()
    build, model = timed(lambda: structure(file))
    forward, _ = timed(lambda: forwards(model))
    seconds, graph = timed(lambda: trace(model))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "build": build,
        "forward": forward,
        "trace": seconds,
        "imports": imports,
        "peak": peak(),
        "groups": len(graph.groups),
        "notes": len(graph.notes) + len(graph.untraced),
    }


def main() -> None:
    """Prints the table."""
    from tests.published import PUBLISHED

    print("| model | parameters | build | trace | forward | cost | peak memory | imports | groups |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, config in {"tiny": TINY, **PUBLISHED}.items():
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(config), encoding="utf-8")
            command = [sys.executable, __file__, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            r = json.loads(done.stdout.splitlines()[-1])
            assert r["notes"] == 0, f"{name} was not traced whole"
            print(
                f"| {name} | {r['parameters']:.3g} | {r['build']:.2f} s | {r['trace']:.2f} s | {r['forward']:.2f} s "
                f"| {r['trace'] / r['forward']:.1f} | {r['peak']:.0f} MB | {r['imports']:.0f} MB | {r['groups']} |"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1])))
    else:
        main()
