"""LoRAPrune written out with full matrices: what belongs to which unit, and Eq. 3, 4, 10.

Nothing here is of graphprune.

https://arxiv.org/abs/2305.18403
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Sizes in tests/decoders.py: heads of 6, two query heads for each of 4 keys and values, 40 channels.
HEAD, QUERIES, CHANNELS = 6, 2, 40

Owners = dict[str, Tensor]
"""For every matrix, which unit each of its elements goes with; of the matrix's own shape, -1 for none."""


def along(shape: tuple[int, ...], dim: int, owner) -> Tensor:
    """Elements belong to the unit ``owner(index along dim)``."""
    view = [1] * len(shape)
    view[dim] = -1
    return torch.tensor([owner(i) for i in range(shape[dim])]).view(view).expand(shape)


def sums(saliency: Tensor, owner: Tensor, size: int) -> Tensor:
    """Eq. 4, of one matrix."""
    inside = owner >= 0
    return torch.zeros(size, dtype=saliency.dtype).index_add(0, owner[inside], saliency[inside])


def taylor(weights: dict[str, Tensor], gradients: dict[str, Tensor], owners: Owners, size: int) -> Tensor:
    """Eq. 3 and 4."""
    return sum(sums((gradients[name] * weights[name]) ** 2, owner, size) for name, owner in owners.items())


def lora_guided(surrogate: dict[str, Tensor], merged: dict[str, Tensor], owners: Owners, size: int) -> Tensor:
    """Eq. 10 and 4; matrices without a surrogate have no adapter.

    Args:
        surrogate: ∂B·A + B·∂A − ∂B·∂A.
        merged: W + s·B·A.
    """
    adapted = [name for name in owners if name in surrogate]
    return sum(sums((surrogate[name] * merged[name]) ** 2, owners[name], size) for name in adapted)


def as_published_code(surrogate: dict[str, Tensor], merged: dict[str, Tensor], owners: Owners, size: int) -> Tensor:
    """The ranking of the authors' code: absolute values, each matrix's unit scores divided by their L2 norm."""
    adapted = [name for name in owners if name in surrogate]
    vectors = [sums((surrogate[name] * merged[name]).abs(), owners[name], size) for name in adapted]
    return sum(vector / vector.norm() for vector in vectors)


FORMULAS = {"paper": lora_guided, "reference": as_published_code}


def llama(layer: int = 1, head: int = HEAD, channels: int = CHANNELS, hidden: int = 48, groups: int = 4) -> dict:
    """Owners of matrices by group: grouped queries, separate projections."""
    at, queries = f"model.layers.{layer}", QUERIES * groups * head
    attention, mlp = f"{at}.self_attn", f"{at}.mlp"
    return {
        f"{attention}/attention.group": {
            f"{attention}.q_proj.weight": along((queries, hidden), 0, lambda i: i // head // QUERIES),
            f"{attention}.k_proj.weight": along((groups * head, hidden), 0, lambda i: i // head),
            f"{attention}.v_proj.weight": along((groups * head, hidden), 0, lambda i: i // head),
            f"{attention}.o_proj.weight": along((hidden, queries), 1, lambda i: i // head // QUERIES),
        },
        f"{mlp}/mlp.channel": {
            f"{mlp}.gate_proj.weight": along((channels, hidden), 0, int),
            f"{mlp}.up_proj.weight": along((channels, hidden), 0, int),
            f"{mlp}.down_proj.weight": along((hidden, channels), 1, int),
        },
    }


def _query_heads() -> dict:
    """The query heads of every key and value alone: the first ones, and the second ones."""
    at = "model.layers.1.self_attn"
    return {
        f"{at}/attention.query": {
            f"{at}.q_proj.weight": along((48, 48), 0, lambda i: i // HEAD % QUERIES),
            f"{at}.o_proj.weight": along((48, 48), 1, lambda i: i // HEAD % QUERIES),
        }
    }


def _phi3() -> dict:
    """Queries, keys and values one after another in one matrix; gate and up, too."""
    at = "model.layers.1"
    return {
        f"{at}.self_attn/attention.group": {
            f"{at}.self_attn.qkv_proj.weight": along(
                (96, 48), 0, lambda i: i // HEAD // QUERIES if i < 48 else (i - 48) % 24 // HEAD
            ),
            f"{at}.self_attn.o_proj.weight": along((48, 48), 1, lambda i: i // HEAD // QUERIES),
        },
        f"{at}.mlp/mlp.channel": {
            f"{at}.mlp.gate_up_proj.weight": along((80, 48), 0, lambda i: i % CHANNELS),
            f"{at}.mlp.down_proj.weight": along((48, 40), 1, int),
        },
    }


def _gpt_neox() -> dict:
    """Query, key and value of a head side by side."""
    at = "gpt_neox.layers.1.attention"
    return {
        f"{at}/attention.group": {
            f"{at}.query_key_value.weight": along((144, 48), 0, lambda i: i // 36),
            f"{at}.dense.weight": along((48, 48), 1, lambda i: i // 12),
        }
    }


def _falcon() -> dict:
    """The query heads of a group, then its key and value."""
    at = "transformer.h.1.self_attention"
    return {
        f"{at}/attention.group": {
            f"{at}.query_key_value.weight": along((96, 48), 0, lambda i: i // 24),
            f"{at}.dense.weight": along((48, 48), 1, lambda i: i // 12),
        }
    }


def _gpt2() -> dict:
    """Stored as inputs × outputs."""
    at = "transformer.h.1"
    return {
        f"{at}.attn/attention.group": {
            f"{at}.attn.c_attn.weight": along((48, 144), 1, lambda i: i % 48 // HEAD),
            f"{at}.attn.c_proj.weight": along((48, 48), 0, lambda i: i // HEAD),
        },
        f"{at}.mlp/mlp.channel": {
            f"{at}.mlp.c_fc.weight": along((48, 40), 1, int),
            f"{at}.mlp.c_proj.weight": along((40, 48), 0, int),
        },
    }


def _mixtral() -> dict:
    """Experts, and one channel of all of them, in stacks of matrices."""
    at = "model.layers.1.mlp"
    up, down = (5, 80, 48), (5, 48, 40)
    return {
        f"{at}/moe.expert": {
            f"{at}.experts.gate_up_proj": along(up, 0, int),
            f"{at}.experts.down_proj": along(down, 0, int),
        },
        f"{at}/moe.channel": {
            f"{at}.experts.gate_up_proj": along(up, 1, lambda i: i % CHANNELS),
            f"{at}.experts.down_proj": along(down, 2, int),
        },
    }


#: By model of tests/decoders.py.
OWNERS = {
    "llama": {**llama(), **_query_heads()},
    "phi3": _phi3(),
    "gpt_neox": _gpt_neox(),
    "falcon-grouped": _falcon(),
    "gpt2": _gpt2(),
    "mixtral": {**{n: o for n, o in llama().items() if n.endswith("attention.group")}, **_mixtral()},
}
