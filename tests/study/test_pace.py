"""How long the rest of a study takes."""

import pytest

from graphprune.study.pace import Pace, duration


def test_cells_are_taken_for_what_is_nearest(cells, small):
    vary = {"criterion": ["lora", "taylor"], "mode": ["one-shot", "joint"]}
    lora_once, lora_joint, taylor_once, taylor_joint = cells(small(vary=vary)).cells
    pace = Pace()
    assert pace.left([lora_once]) is None
    pace.took(lora_once, 2.0)
    assert pace.left([lora_once, taylor_once, taylor_joint]) == 6.0
    pace.took(lora_joint, 10.0)
    assert pace.left([taylor_once, taylor_joint]) == 12.0
    pace.took(taylor_joint, 20.0)
    assert pace.left([lora_joint, taylor_joint]) == 30.0
    assert pace.left([]) == 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "unknown"), (3.4, "3 s"), (59.9, "1 min"), (100, "2 min"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds, told):
    assert duration(seconds) == told
