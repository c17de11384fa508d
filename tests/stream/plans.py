"""Plans that cut every kind of unit a tiny decoder has, and the comparison of two written folders."""

import json
from pathlib import Path

import torch

import graphprune as gp


def thirds(graph: gp.DependencyGraph, *, layers: bool = False) -> gp.PrunePlan:
    """Removes a third of every group, scattered and elsewhere in every layer; with ``layers`` also the second layer,
    or another that may go.

    Channels of experts go in fours: kernels want rows of 16 bytes.
    """
    generator = torch.Generator().manual_seed(0)
    units = {}
    for group in graph.groups:
        if group.frozen is not None or group.size <= group.minimum or group.role == "vocab":
            continue
        if group.role == "layer":
            free = [
                unit for unit in (1, 0, *range(2, group.size)) if not any(set(k) <= {unit} for k in group.essential)
            ]
            units |= {group.name: free[:1]} if layers else {}
            continue
        count = max(1, min(group.size // 3, group.size - group.minimum))
        count = max(4, count // 4 * 4) if group.role == "moe.channel" else count
        chosen = torch.randperm(group.size, generator=generator)[:count].tolist()
        if not any(set(few) <= set(chosen) for few in group.essential):
            units[group.name] = chosen
    return gp.PrunePlan.remove(graph, units)


def differing(one: Path, other: Path) -> list[str]:
    """Files that two folders do not have in common, byte for byte; of the manifests, the line of code may differ."""
    files = [{p.relative_to(top).as_posix(): p for p in top.rglob("*") if p.is_file()} for top in (one, other)]
    odd = sorted(files[0].keys() ^ files[1].keys())
    odd += [n for n in sorted(files[0].keys() & files[1].keys()) if _content(files[0][n]) != _content(files[1][n])]
    return odd


def _content(file: Path) -> object:
    if file.name != "manifest.json":
        return file.read_bytes()
    return {**json.loads(file.read_text()), "load": "", "base_name": "", "checksum": ""}
