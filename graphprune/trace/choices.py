"""Operations whose results depend on data, which fake tensors do not have: one position is assumed to be chosen.

Code that routes by hand asks which positions were chosen (``nonzero``, ``unique``), goes through them in Python, and
reaches a part of the model by the number. Traced is what it does for the first one. Nothing is concluded from that
about the others: the axis that the positions lie on is frozen, and a note says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.multiprocessing.reductions import StorageWeakRef

#: Why axes are frozen along which code looks for positions.
REASON = "positions along it are chosen by data and followed in Python"


def _positions(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return tensor.new_zeros((1, tensor.ndim), dtype=torch.long)


def _different(tensor: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    count = tensor.new_zeros((1,), dtype=torch.long)
    return tensor.new_zeros((1,)), torch.zeros_like(tensor, dtype=torch.long), count


CHOOSING: dict[str, Callable[..., Any]] = {"nonzero": _positions, "_unique2": _different}
"""What stands for the result, by the name of the operation."""


@dataclass
class Choices:
    """The tensors that hold chosen positions, views of them included."""

    _storages: set[StorageWeakRef] = field(default_factory=set)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls ``func``; where its result depends on data, what is assumed of it.

        Raises:
            DataDependentOutputException, DynamicOutputShapeException: where nothing can be assumed.
        """
        try:
            return func(*args, **kwargs)
        except DynamicOutputShapeException:
            stand_in = CHOOSING.get(func._schema.name.split("::")[-1])
            if stand_in is None:
                raise
            result = stand_in(*args)
            for tensor in result if isinstance(result, tuple) else (result,):
                self._storages.add(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
            return result
        except DataDependentOutputException:
            if args and isinstance(args[0], torch.Tensor):
                key = StorageWeakRef(args[0].untyped_storage())  # type: ignore[no-untyped-call]
                if key in self._storages and not args[0].is_floating_point():
                    return 0
            raise
