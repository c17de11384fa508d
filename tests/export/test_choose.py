"""The search for sizes, with a class that is made up."""

import pytest

from graphprune.export.choose import Wish, accepted, choose
from graphprune.export.kinds import Kind
from graphprune.graph import Group


class Stock:
    """Accepts sizes by a rule; ``quick`` only once something was accepted slowly, as fields are known then."""

    def __init__(self, rule):
        self.rule, self.slow, self.quick = rule, [], []
        self._known = False

    def accepts(self, sizes, *, quick=False):
        (self.quick if quick else self.slow).append(dict(sizes))
        good = self.rule(sizes) and (self._known or not quick)
        self._known |= good
        return good


def wish(name, size, asked, options=None):
    group = Group(name=name, role=name, layer=0, size=size, members=())
    return Wish(Kind((group,)), asked, tuple(range(1, size) if options is None else options))


def divides(number):
    return lambda sizes: all(number % kept == 0 for kept in sizes.values())


def test_what_was_asked_for_comes_first():
    stock = Stock(divides(48))
    assert next(choose(stock, [wish("heads", 16, 12)], 1 / 8)) == [12]
    assert stock.slow == [{"heads": 12}]


@pytest.mark.parametrize(("asked", "kept"), [(13, 12), (14, 12), (10, 12), (11, 12), (9, 8), (7, 8), (5, 6)])
def test_the_nearest_size_is_next_and_of_two_the_larger(asked, kept):
    assert next(choose(Stock(divides(48)), [wish("heads", 16, asked)], 1 / 8)) == [kept]


def test_nothing_is_further_than_the_reach():
    assert list(choose(Stock(divides(48)), [wish("heads", 16, 15)], 1 / 8)) == []
    assert list(choose(Stock(divides(48)), [wish("heads", 16, 15)], 1 / 4)) == [[12]]


def test_other_rules_hold():
    assert next(choose(Stock(divides(48)), [wish("heads", 16, 5, options=(2, 4, 8))], 1 / 4)) == [4]
    assert list(choose(Stock(divides(48)), [wish("heads", 16, 5, options=())], 1 / 4)) == []


def test_a_class_that_takes_no_easy_size_is_not_asked_for_every_other():
    stock = Stock(lambda sizes: False)
    assert list(choose(stock, [wish("heads", 16, 9)], 1 / 4)) == []
    assert len(stock.slow) + len(stock.quick) < 6
    assert accepted(stock, wish("heads", 16, 9)) == []


def test_kinds_are_rounded_together():
    """Hidden units must be a multiple of heads, whatever becomes of either."""

    def rule(sizes):
        return sizes.get("hidden", 48) % sizes.get("heads", 8) == 0

    wishes = [wish("heads", 8, 6, options=(1, 2, 4, 6)), wish("hidden", 48, 40, options=(8, 16, 24, 32, 36, 40))]
    assert next(choose(Stock(rule), wishes, 1 / 4)) == [6, 36]


def test_what_a_class_takes_is_told():
    assert accepted(Stock(divides(48)), wish("heads", 16, 15)) == [1, 2, 3, 4, 6, 8, 12]
