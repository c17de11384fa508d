"""How alike the plans of different settings are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.study.layout import Layout, Place
from graphprune.study.records import CellRecord, GroupRecord
from graphprune.study.statistics import Floats


@dataclass(frozen=True)
class Similarity:
    """Of the masks of all pairs of settings, in one kind of groups, at one place; the mean over seeds.

    Attributes:
        layers: indices of the layers with such groups.
        jaccard: |A ∩ B| / |A ∪ B| of the removed units, shape (layers, settings, settings); NaN where neither removed
            any, or one did not run. The mean over the groups of a layer.
        agreement: the share of units with the same fate in both; same shape.
        chance: what ``jaccard`` would be of units drawn at random, as many as were removed; same shape.
    """

    layers: tuple[int, ...]
    jaccard: Floats
    agreement: Floats
    chance: Floats

    def overall(self, values: Floats) -> Floats:
        """The mean of one of the arrays over the layers, shape (settings, settings)."""
        return _mean(values, 0)


def kind(role: str) -> str:
    """The part of a role before its dot: ``attention`` of ``attention.group``."""
    return role.partition(".")[0]


def kinds(cells: Sequence[CellRecord]) -> tuple[str, ...]:
    """Of the groups inside layers of which any unit was removed anywhere, in the order of the graph."""
    groups = [group for cell in cells for group in cell.groups.values() if group.layer is not None]
    cut = {kind(group.role) for group in groups if group.removed}
    return tuple(of for of in dict.fromkeys(kind(group.role) for group in groups) if of in cut)


def similarity(layout: Layout, place: Place, of: str) -> Similarity | None:
    """The similarity of masks at a place in the groups of one kind, between settings with the same seed.

    LoRAPrune (https://arxiv.org/abs/2305.18403, Figure 4) compares "mask similarity" per layer, attention and MLP
    apart, without a formula. Given here are both that are in use: the overlap of what was removed (Jaccard), which
    does not grow by itself when little is removed, and the share of units on which two masks agree, which does.
    """
    by_seed: dict[int, dict[str, CellRecord]] = {}
    for cell in layout.select(place.facet, place.point):
        if cell.groups and cell.status == "done":
            by_seed.setdefault(cell.seed, {})[layout.setting(cell)] = cell
    groups = {
        name: group
        for cells in by_seed.values()
        for cell in cells.values()
        for name, group in cell.groups.items()
        if kind(group.role) == of and group.layer is not None
    }
    layers = tuple(sorted({group.layer for group in groups.values() if group.layer is not None}))
    if not layers or not any(len(cells) > 1 for cells in by_seed.values()):
        return None
    found: dict[int, list[tuple[Floats, Floats, Floats]]] = {layer: [] for layer in layers}
    for name, group in groups.items():
        for cells in by_seed.values():
            assert group.layer is not None
            found[group.layer].append(_pairs(_masks(layout.settings, cells, name, group)))
    stacked = [np.stack([_mean(np.stack([f[k] for f in found[layer]]), 0) for layer in layers]) for k in range(3)]
    return Similarity(layers, *stacked) if np.isfinite(stacked[0]).any() else None


def _masks(settings: Sequence[str], cells: Mapping[str, CellRecord], name: str, group: GroupRecord) -> Floats:
    """What each setting removed of a group: shape (settings, units), 1 where removed; NaN where it did not run."""
    masks = np.zeros((len(settings), group.size))
    for row, setting in enumerate(settings):
        cell = cells.get(setting)
        if cell is None or name not in cell.groups:
            masks[row] = np.nan
        else:
            masks[row, list(cell.groups[name].removed)] = 1.0
    return masks


def _pairs(masks: Floats) -> tuple[Floats, Floats, Floats]:
    """Jaccard, agreement and chance, each of shape (settings, settings)."""
    both, size, units = masks @ masks.T, masks.sum(1), masks.shape[1]
    either = size[:, None] + size[None, :] - both
    expected = size[:, None] * size[None, :] / units
    with np.errstate(invalid="ignore", divide="ignore"):
        jaccard = np.where(either > 0, both / either, np.nan)
        chance = np.where(either > 0, expected / (size[:, None] + size[None, :] - expected), np.nan)
    return jaccard, 1 - (either - both) / units, chance


def _mean(values: Floats, axis: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN, the mean is NaN
        mean: Floats = np.nanmean(values, axis=axis)
    return mean
