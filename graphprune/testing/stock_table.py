"""The page about stock checkpoints, from results to Markdown."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from graphprune.testing.stock_results import StockResult, StockRow
from graphprune.testing.zoo import architectures

TOGETHER = "all"
"""The kind of rows about all kinds at once."""

INTRODUCTION = """# Which pruned models load with stock `from_pretrained`

Tiny models of the architectures that transformers registers ([testing.md](testing.md)), pruned evenly: a quarter of the
units of every group, or one, with `export: {targets: hf}`. Sizes are rounded to the nearest that the class can be
built with; then the model is written, loaded with the stock auto class, and compared: no key is missing or left over,
and logits are the same.

* **as asked**: with the sizes that were asked for. **rounded**: with others, which a plan says aloud.
* **stand-in**: written as a model of another class that computes the same (`specs/siblings.yaml`).
* **refused**: no config of the class describes such a model. It loads with `trust_remote_code=True` or `gp.load`
  ([tiers](checkpoints.md#tiers)). The reasons are below.
* **fails**: a config of the right structure was found when planning, but with the weights it gives other logits. That
  is noticed before anything is written, and the model is not written as a stock checkpoint.
"""

REPRODUCE = """## How to reproduce

```bash
python -m graphprune.testing.stock --jobs 2
python -m graphprune.testing.stock CASE ...
```

The first line asks every case and writes this page and the raw results (`benchmarks/results/stock.json`); with `--keep`
only those without a result. The second line prints some cases.
"""


def render(results: Sequence[StockResult]) -> str:
    """The page ``docs/stock.md``."""
    return "\n".join([INTRODUCTION, _summary(results), _refusals(results), _failures(results), REPRODUCE])


def verdict(row: StockRow) -> str:
    """One word for a row."""
    if row.loads is None:
        return "refused"
    if not row.loads:
        return "fails"
    if row.asked != row.kept:
        return "rounded"
    return "stand-in" if row.stand_in else "as asked"


def _summary(results: Sequence[StockResult]) -> str:
    verdicts = ("as asked", "rounded", "stand-in", "refused", "fails")
    plain, variants = [r for r in results if "@" not in r.case], [r for r in results if "@" in r.case]
    asked = f"{len(plain)} of {len(architectures())} architectures"
    asked += f", {len(variants)} variants" if variants else ""
    lines = ["## In numbers", "", f"Asked: {asked}; a row counts all that have the kind.", ""]
    lines += [f"| pruned | load | of | {' | '.join(verdicts)} |", f"|---|---|---|{'---|' * len(verdicts)}"]
    kinds = dict.fromkeys(row.kind for r in results for row in r.rows if row.kind != TOGETHER)
    for kind in (*kinds, TOGETHER):
        rows = [row for r in results for row in r.rows if row.kind == kind]
        counts = [sum(verdict(row) == v for row in rows) for v in verdicts]
        lines.append(f"| {kind} | {sum(counts[:3])} | {len(rows)} | {' | '.join(str(n or '·') for n in counts)} |")
    return "\n".join([*lines, ""])


def _refusals(results: Sequence[StockResult]) -> str:
    """Every reason with the cases that it was given for."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        for row in result.rows:
            if row.kind != TOGETHER and verdict(row) in ("refused", "fails"):
                found[row.kind, general(row.reason)].append(result.case)
    lines = [
        "## What is refused, and why",
        "",
        "Reasons of single kinds; all kinds together fail where one of them does.",
        "",
    ]
    lines += ["| pruned | cases | reason |", "|---|---|---|"]
    for (kind, reason), cases in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines.append(f"| {kind} | {', '.join(cases)} | {reason} |")
    return "\n".join([*lines, ""])


def _failures(results: Sequence[StockResult]) -> str:
    failed = [f"* **{r.case}**: {r.failure}" for r in results if r.failure]
    return "\n".join(["## Not asked", "", *(failed or ["Nothing failed."]), ""])


def general(reason: str) -> str:
    """A reason without numbers and places, for a table."""
    reason = re.sub(r"^[\w.]+: [^;]*it takes [^;]*; ", "", reason)
    reason = re.sub(r"'[^']*\d[^']*/([\w.]+)'", r"a group `\1`", reason)
    return re.sub(r"\d+(\.\d+)?", "#", reason).replace("|", "/")
