"""The sliding average of unit scores (LoRAPrune, Eq. 11)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Scores = Mapping[str, torch.Tensor]


def update(average: Scores, scores: Scores, decay: float) -> dict[str, torch.Tensor]:
    """``Ḡ_t = λ·Ḡ_{t−1} + (1 − λ)·Ĝ_t``, Eq. (11) of LoRAPrune (https://arxiv.org/abs/2305.18403).

    As published, the average starts from zeros and is not corrected for that. A correction would divide every
    score by the same number ``1 − λ^t`` and so could change no ranking.

    Args:
        average: the average so far by group name, shapes ``(size,)``; absent groups start from zeros.
        scores: the scores of this step by group name, shapes ``(size,)``.
        decay: λ in [0, 1); 0 keeps only the current step.

    Returns:
        The new average of every group in ``scores``: float32, on the scores' device.
    """
    new = {}
    for name, score in scores.items():
        score = score.detach().float()
        old = average.get(name)
        new[name] = (1.0 - decay) * score if old is None else decay * old.to(score.device) + (1.0 - decay) * score
    return new


class SlidingAverage:
    """The average of a run, with the state that a checkpoint needs.

    Args:
        decay: λ of :func:`update`.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the sliding average must lie in [0, 1), got {decay}")
        self.decay = decay
        self.values: dict[str, torch.Tensor] = {}
        self.count = 0

    def update(self, scores: Scores) -> dict[str, torch.Tensor]:
        """Takes in the scores of one step and returns the average."""
        self.values = update(self.values, scores, self.decay)
        self.count += 1
        return self.values

    def state_dict(self) -> dict[str, object]:
        """Copies of the averages on the CPU, and how many steps they hold."""
        return {"count": self.count, "values": {name: v.cpu().clone() for name, v in self.values.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from a :meth:`state_dict`."""
        count, values = state["count"], state["values"]
        assert isinstance(count, int)
        assert isinstance(values, Mapping)
        self.count, self.values = count, {name: v.clone() for name, v in values.items()}
