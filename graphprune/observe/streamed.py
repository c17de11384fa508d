"""Unit scores taken of weight gradients inside the backward pass, so that no gradient is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from graphprune import processes
from graphprune.graph import Group, Member
from graphprune.importance.base import LoraFactors, MemberCriterion, Observation
from graphprune.names import resolve_tensor
from graphprune.observe.gradients import GradientTap, wide


class _Place(NamedTuple):
    """A member, and which one of its group it is."""

    group: str
    number: int
    member: Member


class MemberScores:
    """Sums over backward calls of what a criterion says of every member, by the gradient of its tensor alone.

    Args:
        model: bare or wrapped.
        groups: what to score.
        criterion: the judge.
        seen: tells it everything but gradients.
    """

    def __init__(
        self, model: nn.Module, groups: Iterable[Group], criterion: MemberCriterion, seen: Observation
    ) -> None:
        self._criterion, self._seen = criterion, seen
        self._places: dict[str, list[_Place]] = {}
        for group in groups:
            for number, member in enumerate(group.members):
                self._places.setdefault(member.tensor, []).append(_Place(group.name, number, member))
        self._tensors = {name: resolve_tensor(model, name) for name in self._places}
        self._names: dict[int, list[str]] = {}
        for name, tensor in self._tensors.items():
            self._names.setdefault(id(tensor), []).append(name)
        self._tap = GradientTap(model, self._places, self._take)
        self._sums: dict[tuple[str, int], Tensor] = {}

    def open(self) -> None:
        """Begins to score."""
        self._tap.open()

    def close(self) -> None:
        """Stops scoring and leaves the parameters as they were."""
        self._tap.close()
        self.reset()

    def reset(self) -> None:
        """Forgets the scores."""
        self._sums.clear()

    def share(self) -> None:
        """Makes the scores the means over all processes."""
        keys, scores = [], []
        for name, places in self._places.items():
            home = self._tensors[name]
            kind = torch.promote_types(home.dtype, torch.float32)
            for group, number, member in places:
                keys.append((group, number))
                own = self._sums.get(keys[-1])
                scores.append(torch.zeros(member.size, dtype=kind, device=home.device) if own is None else own)
        self._sums.update(zip(keys, processes.mean(scores), strict=True))

    def of(self, group: Group) -> Sequence[Tensor]:
        """Summed scores of the group's members, each of shape ``(size,)``; zero where no gradient came."""
        found = [self._sums.get((group.name, number)) for number in range(len(group.members))]
        like = next((f for f in found if f is not None), torch.zeros(()))
        return [like.new_zeros(group.size) if f is None else f for f in found]

    def recorded(self) -> Iterator[tuple[str, Tensor]]:
        """The scores that there are, by tensor name."""
        for name, places in self._places.items():
            for place in places:
                if (place.group, place.number) in self._sums:
                    yield name, self._sums[place.group, place.number]

    @torch.no_grad()
    def _take(self, parameter: Tensor, gradient: Tensor) -> None:
        for name in self._names[id(parameter)]:
            seen = _OneGradient(self._seen, gradient)
            for group, number, member in self._places[name]:
                scores = self._criterion.score_member(member, seen)
                known = self._sums.get((group, number))
                self._sums[group, number] = scores if known is None else known + scores


class _OneGradient(Observation):
    """What is seen while the gradient of one tensor passes by."""

    def __init__(self, seen: Observation, gradient: Tensor) -> None:
        self._seen, self._gradient = seen, gradient

    def weight(self, tensor: str) -> Tensor:
        return self._seen.weight(tensor)

    def shape(self, tensor: str) -> torch.Size:
        return self._seen.shape(tensor)

    def weight_rows(self, tensor: str, start: int, stop: int) -> Tensor:
        return self._seen.weight_rows(tensor, start, stop)

    def holder(self, tensor: str) -> nn.Module | None:
        return self._seen.holder(tensor)

    def gradient(self, tensor: str) -> Tensor:
        return self._gradient

    def squared_gradient(self, tensor: str) -> Tensor:
        return wide(self._gradient).square()

    def lora(self, tensor: str) -> LoraFactors | None:
        return self._seen.lora(tensor)

    def input_norm(self, tensor: str) -> Tensor | None:
        return self._seen.input_norm(tensor)

    def mask_gradient(self, group: Group) -> Tensor:
        return self._seen.mask_gradient(group)
