"""What kernels, tensor parallelism and runtimes ask of the sizes of groups; none of it depends on the model's class.

Sources, read in November 2026:

* Tensor parallelism. vLLM refuses a number of query heads that the number of devices N does not divide ("Total number
  of attention heads (…) must be divisible by tensor parallel size (…)", ``ModelConfig.verify_with_parallel_config`` in
  ``vllm/config``). KV heads are divided, or each is held by N / heads devices where there are fewer than N
  (``ModelConfig.get_num_kv_heads``, and the layers for queries, keys and values assert one of the two). Columns of up
  projections and rows of down projections, of experts as well, are divided evenly (``vllm.distributed.utils.divide``).
  transformers' own tensor parallelism divides the same dimensions.
* llama.cpp. A row of a GGUF tensor (the input side of a linear layer) holds whole blocks: of 256 numbers for k-quants
  (Q4_K_M and the like), of 32 for Q4_0, Q5_0 and Q8_0. Where 256 does not divide a row, quantising falls back to a
  larger type (https://github.com/ggml-org/llama.cpp/issues/6614, https://github.com/ggml-org/llama.cpp/pull/3747);
  where 32 does not, to 16 bits. Every layer has the same sizes.
* Both runtimes have models of their own by the name of the architecture, so the folder must be a stock one.
* Nothing is asked of head sizes and vocabularies: no kind of pruning changes them, so kernels that take only some head
  sizes, and servers that pad the vocabulary, do with the result what they do with the original.
* Matrices of experts that are multiplied in groups have rows of a multiple of 16 bytes
  (``torch._grouped_mm``): the tracer notes that on the group (:attr:`graphprune.graph.Group.multiple_of`), whatever
  the export.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from graphprune.graph import DependencyGraph, Group, Member
from graphprune.schema import Export

#: Their units are whole modules or matrices, so their number is no width.
_NO_WIDTH = ("layer", "moe.expert", "moe.group")
#: What tensor parallelism divides among devices.
_DIVIDED = (
    "attention.group",
    "attention.query",
    "mlp.channel",
    "moe.channel",
    "moe.expert",
    "mixer.head",
    "mixer.channel",
)
#: Rows of k-quants, and of the types with the smallest blocks.
_BLOCKS = (256, 32)


@dataclass(frozen=True)
class Rule:
    """A condition on the number of units of one group that stay.

    Attributes:
        multiple: the number is a multiple of this.
        why: what asks for it.
        or_divides: or it divides this; 0 where that is no way out.
    """

    multiple: int
    why: str
    or_divides: int = 0

    def allows(self, kept: int) -> bool:
        """Whether so many units may stay."""
        return kept % self.multiple == 0 or (self.or_divides > 0 and self.or_divides % kept == 0)


def rules_for(group: Group, graph: DependencyGraph, export: Export) -> tuple[Rule, ...]:
    """What ``export`` asks of the number of units of ``group`` that stay; its present number is always allowed."""
    found = [*_kernels(group, graph, export), *_parallel(group, graph, export), *_blocks(group, graph, export)]
    return tuple(rule for rule in found if rule.multiple > 1)


def _kernels(group: Group, graph: DependencyGraph, export: Export) -> Iterator[Rule]:
    if export.multiple_of > 1:
        width = _width(group, graph, group.members)
        yield Rule(_step(export.multiple_of, width), f"export.multiple_of: {export.multiple_of}")


def _parallel(group: Group, graph: DependencyGraph, export: Export) -> Iterator[Rule]:
    devices = export.tensor_parallel
    if devices == 1 or group.role not in _DIVIDED:
        return
    why = f"export.tensor_parallel: {devices}"
    if group.role == "attention.group":
        queries = _queries(group, graph)
        yield Rule(devices, why, or_divides=devices)
        yield Rule(devices // math.gcd(devices, queries), why)
    elif group.role == "attention.query":
        heads = _crossing(group, graph, "attention.group")
        yield Rule(devices // math.gcd(devices, heads), why)
    else:
        yield Rule(devices, why)


def _blocks(group: Group, graph: DependencyGraph, export: Export) -> Iterator[Rule]:
    """Rows that llama.cpp can quantise as well as it could before."""
    if "llama.cpp" not in export.runtimes:
        return
    width = _width(group, graph, group.consumers)
    block = next((b for b in _BLOCKS if width and group.size * width % b == 0), 1)
    yield Rule(_step(block, width), f"export.runtimes: rows of llama.cpp's quantised types are multiples of {block}")


def _step(multiple: int, width: int) -> int:
    """Of how many units of ``width`` indices a multiple is a ``multiple`` of indices; 1 for what has no width."""
    return multiple // math.gcd(multiple, width) if width else 1


def _width(group: Group, graph: DependencyGraph, members: tuple[Member, ...]) -> int:
    """The indices of one unit in the narrowest matrix that it is a part of; 0 where it has none."""
    if group.role in _NO_WIDTH or group.stacks:
        return 0
    found = []
    for member in members:
        if len(graph.shapes.get(member.tensor, ())) >= 2 and member.only is None:
            experts = _crossing_here(member, graph, "moe.expert")
            found.append(len(member.indices(0)) // experts)
    return min(found, default=0)


def _queries(group: Group, graph: DependencyGraph) -> int:
    """Query heads per KV head."""
    return _crossing(group, graph, "attention.query")


def _crossing(group: Group, graph: DependencyGraph, role: str) -> int:
    """How many units the group of ``role`` has that runs through the same dimension of a tensor; 1 without one."""
    return max((_crossing_here(member, graph, role) for member in group.members), default=1)


def _crossing_here(member: Member, graph: DependencyGraph, role: str) -> int:
    found = (g.size for g, m in graph.cut(member.tensor) if g.role == role and m.dim == member.dim)
    return max(found, default=1)
