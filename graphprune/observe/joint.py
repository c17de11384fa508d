"""What several processes make of weight gradients together, inside the backward pass that all of them go through.

The score of a global batch is that of the mean gradient over processes. So each gradient is averaged as soon as it is
there, and no process keeps one. Where the processes do not go through the same layers in a step
(:mod:`.agreement`), they keep their gradients until its end.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from graphprune import processes
from graphprune.divided import zeros
from graphprune.errors import DistributedError
from graphprune.graph import Group
from graphprune.importance.base import MemberCriterion, Observation
from graphprune.names import resolve_tensor
from graphprune.observe.agreement import Agreement
from graphprune.observe.gradients import GradientRecorder, wide
from graphprune.observe.streamed import MemberScores


class Meeting:
    """Averages gradients over processes as they come, if :attr:`agreement` holds.

    Args:
        model: bare or wrapped.
        tensors: names in the graph.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str]) -> None:
        names = tuple(tensors)
        self.agreement = Agreement(model, names)
        self.tensors = {id(t): t for t in (resolve_tensor(model, name) for name in names)}
        self._numbers = {key: float(number) for number, key in enumerate(self.tensors)}
        self._kept: dict[int, Tensor] = {}
        self._mismatch: Tensor | None = None

    def reset(self) -> None:
        """Forgets what was kept."""
        self.agreement.reset()
        self._kept.clear()
        self._mismatch = None

    def mean(self, parameter: Tensor, gradient: Tensor) -> Tensor | None:
        """The mean gradient over processes; None where they do not meet here, and it is kept."""
        key = id(parameter)
        if not self.agreement.holds:
            self._kept[key] = gradient if key not in self._kept else wide(self._kept[key]).add_(gradient)
            return None
        number = torch.tensor(self._numbers[key], device=gradient.device)
        found, theirs = processes.mean([gradient, number])
        mismatch = (theirs - number).abs()  # looked at later: a device is not waited for at every weight
        self._mismatch = mismatch if self._mismatch is None else self._mismatch.to(mismatch.device) + mismatch
        return found

    def rest(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The tensors whose gradients were kept in any process, each with its mean; every process goes through them.

        Raises:
            DistributedError: if processes have averaged gradients of different tensors.
        """
        differ = self._mismatch is not None and float(self._mismatch) > 0
        if processes.any_of(differ):
            raise DistributedError(
                "processes went through the layers of the model in different orders in their backward passes, although "
                "their forward passes were alike, so that their gradients cannot be compared. Expected the same "
                "layers in each; criterion 'taylor' with mean_of: batch needs no such order."
            )
        reached = processes.total([torch.tensor([float(key in self._kept) for key in self.tensors])])[0] > 0
        for (key, tensor), anywhere in zip(self.tensors.items(), reached.tolist(), strict=True):
            if anywhere:
                own = self._kept.pop(key) if key in self._kept else zeros(tensor)
                yield tensor, processes.mean([own])[0]


class JointScores(MemberScores):
    """Scores of members by the mean gradient over processes, for one backward pass per score in each of them.

    Arguments as those of :class:`MemberScores`.
    """

    def __init__(
        self, model: nn.Module, groups: Iterable[Group], criterion: MemberCriterion, seen: Observation
    ) -> None:
        super().__init__(model, groups, criterion, seen)
        self._meeting = Meeting(model, self._places)

    def open(self) -> None:
        super().open()
        self._meeting.agreement.open()

    def close(self) -> None:
        self._meeting.agreement.close()
        super().close()

    def reset(self) -> None:
        super().reset()
        self._meeting.reset()

    def share(self) -> None:
        """Scores by the gradients that were kept; what was averaged has been scored."""
        for tensor, mean in self._meeting.rest():
            super()._take(tensor, mean)

    def _take(self, parameter: Tensor, gradient: Tensor) -> None:
        mean = self._meeting.mean(parameter, gradient)
        if mean is not None:
            super()._take(parameter, mean)


class JointGradients(GradientRecorder):
    """The summed mean gradients over processes, of which each process keeps a part; for models that are divided.

    Args:
        model: bare or wrapped.
        tensors: names in the graph.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str]) -> None:
        names = tuple(tensors)
        super().__init__(model, names, sums=True, squares=False)
        self._meeting = Meeting(model, names)

    def open(self) -> None:
        super().open()
        self._meeting.agreement.open()

    def close(self) -> None:
        self._meeting.agreement.close()
        super().close()

    def reset(self) -> None:
        super().reset()
        self._meeting.reset()

    def share(self) -> None:
        """Averages what was kept whole."""
        for tensor, mean in self._meeting.rest():
            self._keep(tensor, mean)

    def _add(self, parameter: Tensor, gradient: Tensor) -> None:
        mean = self._meeting.mean(parameter, gradient)
        if mean is not None:
            self._keep(parameter, mean)

    def _keep(self, parameter: Tensor, mean: Tensor) -> None:
        part, known = processes.part(mean), self._sums.get(id(parameter))
        self._sums[id(parameter)] = part if known is None else known.add_(part)

    def _read(self, store: dict[int, Tensor], name: str) -> Tensor:
        tensor = self._tensors[name]
        like = zeros(tensor)
        return like if id(tensor) not in store else processes.whole(store[id(tensor)], like.shape)
