"""Time and peak memory of stages."""

import time

import pytest
import torch

from graphprune.report import StageClock

MIB = 1 << 20


def test_stages_are_timed_in_order_also_after_an_error():
    clock = StageClock()
    with clock.stage("one"):
        time.sleep(0.05)
    with pytest.raises(ValueError, match="no"), clock.stage("two"):
        raise ValueError("no")
    with clock.stage("outer"), clock.stage("inner"):
        time.sleep(0.02)
    names = [s.name for s in clock.stages]
    assert names == ["one", "two", "outer", "inner"]
    assert 0.05 <= clock.stages[0].seconds < 1
    assert clock.stages[2].seconds >= clock.stages[3].seconds >= 0.02


def test_a_peak_belongs_to_its_stage():
    clock = StageClock()
    with clock.stage("outer"):
        with clock.stage("big"):
            torch.ones(200 * MIB // 4)
        with clock.stage("small"):
            torch.ones(MIB // 4)
    outer, big, small = clock.stages
    assert outer.peak_rss_bytes >= big.peak_rss_bytes
    if big.peak_rss_bytes == small.peak_rss_bytes:
        pytest.skip("this system cannot reset its high-water mark")
    assert big.peak_rss_bytes - small.peak_rss_bytes > 150 * MIB
