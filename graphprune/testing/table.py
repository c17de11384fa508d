"""The coverage table, from results to Markdown."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from graphprune.prove import ProofRow
from graphprune.testing.remedies import remedy
from graphprune.testing.results import Result

ROLES = (
    "attention.group", "attention.query", "mlp.channel", "moe.expert", "moe.group", "moe.channel", "mixer.head",
    "mixer.channel", "mla.q_rank", "mla.kv_rank", "rank", "hidden", "layer",
)  # fmt: skip
"""Roles that can be pruned, in the order of the columns."""
VERDICTS = ("exact", "partly", "inexact", "frozen", "✗")

INTRODUCTION = """# Coverage

Every causal language model that transformers registers and that can be built offline, tiny, and its variants
([testing.md](testing.md)): traced without a line about any of them, pruned at random kind by kind (one unit and a
quarter of the units, in one layer and in all layers, then everything together), and compared.

* **exact**: the reshaped model gives the logits of the masked one to 1e-5 of the largest logit in float32 (or to ten
  times its own rounding, where the architecture amplifies that); no removed slice has a gradient under the mask; eight
  greedy tokens, with a cache and behind a prompt longer than any sliding window, are the same. Copies without layers,
  and copies with all kinds pruned together, are also saved and loaded again: same logits, same tokens.
* **partly**: exact, with some groups of the role frozen. **inexact**: by the graph, removal differs from silencing.
* **✗**: one of these fails. **frozen**: must not be pruned, for the reason below.
* **expected**: what the names of modules promise ([testing.md](testing.md#a-second-opinion)) and the tracer, which does
  not read them, has to find. What is promised and cannot be pruned is called **MISSING**.
"""

LEGEND = (
    "The number is the largest difference of logits, as a fraction of the largest logit (`0`: bit by bit the same). "
    "`f` all frozen, `+f` some groups frozen, `i` inexact, `✗` fails, `·` not there. Folder with everything pruned: "
    "`hf` loads with `from_pretrained`, `rc` does so with its own modelling file (`trust_remote_code=True`), `gp` with "
    "`graphprune.load`. Text: generated with a `cache`, without one (`plain`), or not at all (`·`), as the unpruned "
    "model can."
)

REPRODUCE = """## How to reproduce

```bash
python -m graphprune.testing.coverage --jobs 2
python -m graphprune.testing.coverage CASE ...
```

The first line measures every case again if the sources have changed, each in a process of its own with a limit of time
and memory, and writes this page and the raw results (`benchmarks/results/coverage.json`). It can be interrupted. The
second line measures and prints some cases.
"""


def render(results: Sequence[Result]) -> str:
    """The page ``docs/coverage.md``."""
    parts = [INTRODUCTION, _summary(results), _failures(results), _missing(results), _matrix(results)]
    return "\n".join([*parts, _reasons(results), _notes(results), REPRODUCE])


def verdict(rows: Sequence[ProofRow]) -> str:
    """One word (or cross) for all groups of a role."""
    if any(not row.ok for row in rows):
        return "✗"
    fates = {row.fate for row in rows}
    if len(fates) == 1:
        return fates.pop()
    return "inexact" if "inexact" in fates else "partly"


def general(text: str) -> str:
    """A text without the numbers of layers and the like."""
    return re.sub(r"\d+", "#", text)


def anywhere(reason: str) -> str:
    """A reason without the places where it holds."""
    reason = re.sub(r"(?<= in )[\w.#']*[.#][\w.#']*|(?<=forward of )[\w.#]+", "a module", general(reason))
    return re.sub(r",? in a module(?=$|[;,])", "", reason)


def _summary(results: Sequence[Result]) -> str:
    plain = [r for r in results if "@" not in r.case]
    tried = [r for r in results if r.rows]
    promised = [part for r in results for part in r.parts]
    untold, sound = sum(not r.notes for r in tried), sum(not r.problems for r in results)
    told = (
        f"{len(plain)} architectures and {len(results) - len(plain)} variants; {len(tried)} traced and tried, "
        f"{untold} of them without a note of the tracer, {sound} "
        f"without a failure. The median trace takes {median([0.0, *(r.seconds for r in tried)]):.2f} s. Of "
        f"{sum(p.count for p in promised)} parts that the names of modules promise, "
        f"{sum(p.prunable for p in promised)} can be pruned."
    )
    head = f"| role | {' | '.join(VERDICTS)} | largest difference | of the largest logit |"
    lines = ["## In numbers", "", told, "", "Architectures (without variants); differences over all cases:", ""]
    lines += [head, f"|---|{'---|' * (len(VERDICTS) + 2)}"]
    for role in (*ROLES, "together"):
        counts = Counter(verdict(rows) for r in plain if (rows := r.of(role)))
        proved = [row for r in results for row in r.of(role) if row.ok and row.fate == "exact"]
        worst = max([0.0, *(row.difference or 0.0 for row in proved)])
        relative = max([0.0, *(row.relative or 0.0 for row in proved)])
        name = "all kinds together" if role == "together" else f"`{role}`"
        lines.append(f"| {name} | {_cells(counts[v] for v in VERDICTS)} | {worst:.1e} | {relative:.1e} |")
    return "\n".join([*lines, ""])


def _matrix(results: Sequence[Result]) -> str:
    head = ("case", "s", *ROLES, "together", "folder", "text", "expected")
    lines = ["## Case by case", "", LEGEND, "", f"| {_cells(head)} |", f"|{'---|' * len(head)}"]
    for result in results:
        cells = ["✗" if result.failure else _cell(result.of(role)) for role in (*ROLES, "together")]
        ends = (_folder(result), _text(result), _expected(result))
        lines.append(f"| {_cells((result.case, f'{result.seconds:.2f}', *cells, *ends))} |")
    return "\n".join([*lines, ""])


def _cell(rows: Sequence[ProofRow]) -> str:
    if not rows:
        return "·"
    found = verdict(rows)
    if found in ("✗", "frozen"):
        return {"frozen": "f"}.get(found, found)
    worst = max(row.relative or 0.0 for row in rows if row.fate != "frozen")
    power = "0" if worst == 0 else f"{worst:.0e}".replace("e-0", "e-")
    return power + {"partly": " +f", "inexact": " i"}.get(found, "")


def _folder(result: Result) -> str:
    tiers = [row.tier for row in result.of("together") if row.tier]
    return {"hf": "hf", "hf-remote-code": "rc", "graphprune": "gp"}.get(tiers[0], tiers[0]) if tiers else "·"


def _text(result: Result) -> str:
    if not any(row.generates for row in result.rows):
        return "·"
    return "plain" if any("without one" in note for row in result.rows for note in row.notes) else "cache"


def _expected(result: Result) -> str:
    missing = [f"**MISSING** {p.part}, {_role(p.role)}" for p in result.parts if p.prunable < p.count]
    return "; ".join(missing) or ("all" if result.parts else "·")


def _failures(results: Sequence[Result]) -> str:
    folder = re.compile(r"\S*/graphprune-\w+/model")
    lines = [f"* **{r.case}**: {folder.sub('the folder', told)}" for r in results for told in r.problems]
    return "\n".join(["## What fails", "", *(lines or ["Nothing."]), ""])


def _missing(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        for p in result.parts:
            if p.prunable < p.count:
                why = [*p.reasons, *(["not found"] if p.missing else [])]
                reasons = "; ".join(dict.fromkeys(map(general, why)))
                rows.append(f"| {result.case} | {p.part} | {_role(p.role)} | {p.prunable} of {p.count} | {reasons} |")
    head = ["| case | part | role | prunable | why not |", "|---|---|---|---|---|"]
    return "\n".join(
        ["## MISSING: promised by names, but not prunable", "", *([*head, *rows] if rows else ["None."]), ""]
    )


def _reasons(results: Sequence[Result]) -> str:
    """Everything frozen or inexact, by reason; what concerns most architectures first."""
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for result in results:
        for row in result.rows:
            if row.reason:
                found[row.fate, anywhere(row.reason)][row.role].add(result.case)
    lines = ["## What is frozen or inexact, why, and what it would take", ""]
    lines += ["| fate | reason | roles | architectures | what it would take |", "|---|---|---|---|---|"]

    def weight(item: tuple[tuple[str, str], dict[str, set[str]]]) -> tuple[int, str]:
        return -len(set().union(*item[1].values())), item[0][1]

    for (fate, reason), roles in sorted(found.items(), key=weight):
        where = set().union(*roles.values())
        names = f"{len(where)} of {len(results)} cases" if len(where) > len(results) / 2 else ", ".join(sorted(where))
        lines.append(f"| {fate} | {reason} | {_names(roles)} | {names} | {remedy(reason)} |")
    return "\n".join([*lines, ""])


def _notes(results: Sequence[Result]) -> str:
    """What the tracer could not follow, by note."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for result in results:
        for note in result.notes:
            found[general(note)][result.case] = None
    lines = [f"* {', '.join(where)}: {note}" for note, where in sorted(found.items())]
    return "\n".join(["## Notes of the tracer", "", *(lines or ["None."]), ""])


def _cells(values: Iterable[object]) -> str:
    return " | ".join(map(str, values))


def _names(roles: Iterable[str]) -> str:
    return ", ".join(f"`{role}`" for role in sorted(roles))


def _role(pattern: str) -> str:
    return " or ".join(f"`{role}`" for role in pattern.split("|"))
