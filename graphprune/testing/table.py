"""The coverage table, from results to Markdown."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphprune.prove import ProofRow

if TYPE_CHECKING:
    from graphprune.testing.coverage import Result

ROLES = (
    "attention.group", "attention.query", "mlp.channel", "moe.expert", "moe.group", "moe.channel", "mixer.head",
    "mixer.channel", "mla.q_rank", "mla.kv_rank", "rank", "hidden", "layer",
)  # fmt: skip
"""Roles that can be pruned, in the order of the columns."""

INTRODUCTION = """# Coverage

Every causal language model that transformers registers and that can be built offline, tiny, and its variants
([testing.md](testing.md)): traced without a line about any of them, pruned at random kind by kind (one unit and a
quarter of the units, in one layer and in all layers, then everything together), and compared. Made by

```bash
python -m graphprune.testing.coverage
```

which measures again whatever the sources have changed for (raw results: `benchmarks/results/coverage.json`).

* **exact**: the reshaped model gives the logits of the masked one to 1e-5 of the largest logit in float32; no removed
  slice has a gradient under the mask; eight greedy tokens, with a cache and behind a prompt longer than any sliding
  window, are the same; the saved folder, loaded again, gives the same logits and tokens.
* **✗**: one of these fails. **frozen**: must not be pruned, for the reason below.
"""

LEGEND = (
    "The number is the largest difference, as a fraction of the largest logit (`0`: bit by bit the same); `f` frozen, "
    "`+f` some groups frozen, `i` inexact, `·` not there; `hf` and `gp` are the tiers of the folder with everything "
    "pruned (`gp`: `graphprune.load`)."
)


def render(results: Sequence[Result]) -> str:
    """The page ``docs/coverage.md``."""
    parts = [
        INTRODUCTION,
        _summary(results),
        _matrix(results),
        _promised(results),
        _frozen(results),
        _failures(results),
    ]
    return "\n".join(parts)


def _kinds(result: Result, role: str) -> list[ProofRow]:
    return [row for row in result.rows if row.role == role]


def _summary(results: Sequence[Result]) -> str:
    plain = [r for r in results if "@" not in r.case]
    tried = [r for r in results if r.rows]
    noted = sum(bool(r.notes) for r in tried)
    told = (
        f"{len(plain)} architectures and {len(results) - len(plain)} variants; {len(tried)} traced and tried, "
        f"{len(tried) - noted} without a note of the tracer. The median trace takes "
        f"{_median([r.seconds for r in tried]):.2f} s (without and with a cache)."
    )
    head = "| role | exact | partly frozen | frozen | ✗ | largest difference, of the largest logit |"
    lines = ["## In numbers", "", told, "", head, "|---|---|---|---|---|---|"]
    for role in (*ROLES, "together"):
        counts: dict[str, int] = defaultdict(int)
        worst = 0.0
        for result in results:
            rows = _kinds(result, role)
            if rows:
                counts[_verdict(rows)] += 1
            worst = max([worst, *(row.relative or 0.0 for row in rows if row.ok)])
        name = "all kinds together" if role == "together" else f"`{role}`"
        cells = [counts["exact"], counts["partly"], counts["frozen"], counts["✗"]]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {worst:.1e} |")
    return "\n".join([*lines, ""])


def _verdict(rows: Sequence[ProofRow]) -> str:
    if any(not row.ok for row in rows):
        return "✗"
    fates = {row.fate for row in rows}
    if fates == {"frozen"}:
        return "frozen"
    return "partly" if "frozen" in fates else "inexact" if "inexact" in fates else "exact"


def _matrix(results: Sequence[Result]) -> str:
    lines = [
        "## Case by case",
        "",
        LEGEND,
        "",
        f"| case | s | {' | '.join(ROLES)} | together | folder |",
        f"|---|---|{'---|' * (len(ROLES) + 2)}",
    ]
    for result in results:
        if not result.rows:
            lines.append(f"| {result.case} |{' |' * (len(ROLES) + 2)} {result.failure[:60]} |")
            continue
        cells = [_cell(_kinds(result, role)) for role in (*ROLES, "together")]
        tiers = [row.tier for row in result.rows if row.role == "together" and row.tier]
        tier = {"hf": "hf", "graphprune": "gp"}.get(tiers[0], tiers[0]) if tiers else "·"
        lines.append(f"| {result.case} | {result.seconds:.2f} | {' | '.join(cells)} | {tier} |")
    return "\n".join([*lines, ""])


def _cell(rows: Sequence[ProofRow]) -> str:
    if not rows:
        return "·"
    verdict = _verdict(rows)
    if verdict in ("✗", "frozen"):
        return {"frozen": "f"}.get(verdict, verdict)
    differences = [row.relative or 0.0 for row in rows if row.fate != "frozen"]
    worst = max(differences)
    power = "0" if worst == 0 else f"{worst:.0e}".replace("e-0", "e-")
    return power + {"partly": " +f", "inexact": " i"}.get(verdict, "")


PROMISED = """## Promised and not prunable

What is inside a decoder is also told by what its modules are called ([testing.md](testing.md#a-second-opinion)): parts
that run and have no group of their role, or only frozen ones.
"""


def _promised(results: Sequence[Result]) -> str:
    """What a tracer that overlooks something would not report."""
    lines = []
    for result in results:
        for part in result.parts:
            role = f"{' or '.join(f'`{r}`' for r in part.role.split('|'))} of {part.part}"
            if part.missing:
                where = f"{len(part.missing)} of {part.count}, such as {part.missing[0] or 'the model'}"
                lines.append(f"* **{result.case}**: no {role} in {where}")
            if part.frozen:
                why = "; ".join(dict.fromkeys(map(_general, part.reasons)))
                lines.append(f"* **{result.case}**: {role} frozen in {part.frozen} of {part.count}: {why}")
    return "\n".join([PROMISED, *(lines or ["none"]), ""])


def _frozen(results: Sequence[Result]) -> str:
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        for role in ROLES:
            for row in _kinds(result, role):
                if row.fate == "frozen":
                    reasons[role, _general(row.reason or "")].append(result.case)
    lines = ["## What is frozen, and why", "", "| role | reason | where |", "|---|---|---|"]
    for (role, reason), where in sorted(reasons.items()):
        lines.append(f"| `{role}` | {reason} | {', '.join(dict.fromkeys(where))} |")
    return "\n".join([*lines, ""])


def _general(reason: str) -> str:
    """A reason without the numbers of layers."""
    return re.sub(r"\.\d+(?=[.' ]|$)|(?<=layer )\d+", lambda m: ".#" if m[0].startswith(".") else "#", reason)


def _failures(results: Sequence[Result]) -> str:
    lines = ["## What fails", ""]
    for result in results:
        if result.failure:
            lines.append(f"* **{result.case}**: {result.failure}")
        lines.extend(f"* **{result.case}**, {row.role}: {row.problem}" for row in result.rows if row.problem)
    noted = [r for r in results if r.notes]
    lines += ["", "## Notes of the tracer", ""]
    lines += [f"* **{r.case}**: {'; '.join(dict.fromkeys(map(_general, r.notes)))}" for r in noted] or ["none"]
    return "\n".join([*lines, ""])


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0
