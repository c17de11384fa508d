"""The answer first: what was found, in words, and what may not be concluded from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from graphprune.study.findings import Findings
from graphprune.study.layout import Place
from graphprune.study.metrics import Metric
from graphprune.study.report import verdicts
from graphprune.study.report.section import Block, Fold, Points, Section
from graphprune.study.report.words import count, effect_words, interval_words, join, told
from graphprune.study.verdicts import Standing

_NAMED = 4
"""So many settings are named in a sentence; more are counted."""
_SHOWN = 24
"""With more places than this, those of the first model and variant are shown, and the others folded away."""


def section(findings: Findings) -> Section:
    """Always there."""
    layout = findings.layout
    if not findings.metrics:
        failed = sum(cell.status == "failed" for cell in layout.cells)
        text = f"No quality is known: of {count(len(layout.cells), 'run')} {failed} failed, the others measured none."
        return Section("answer", "What was found", [text])
    metric = findings.metrics[0]
    blocks: list[Block] = []
    if findings.results.study.question:
        blocks.append(f"Asked: {findings.results.study.question}")
    blocks.append(_overview(findings, metric))
    for number, facet in enumerate(layout.facets):
        places = [place for place in findings.places if place.facet == facet]
        points, title = Points([sentence(findings, metric, place) for place in places]), layout.title(facet)
        if number and len(findings.places) > _SHOWN:
            blocks.append(Fold(f"For {title}", [points]))
        else:
            blocks += [f"For {title}:", points] if title else [points]
    others = [m for m in findings.metrics[1:] if not m.column.startswith("accuracy[") or len(findings.metrics) < 5]
    blocks += [_in_short(findings, other) for other in others]
    blocks.append("What may not be concluded:")
    blocks.append(Points(limits(findings, metric)))
    blocks.append(verdicts.table(findings, metric))
    return Section("answer", "What was found", blocks)


def sentence(findings: Findings, metric: Metric, place: Place) -> str:
    """What is to be said of one place: who leads, what ties with it, what is worse."""
    standing, where = findings.standing(metric, place), findings.layout.at(place.point)
    start = f"At {where}: " if where else ""
    if standing.best is None:
        return f"{start}no run gave a number."
    best = standing.estimates[standing.best]
    seeds = count(best.seeds, "seed")
    value = f"{metric.show(best.mean)}"
    if best.interval is not None:
        value += f", 95 % interval {interval_words(metric, best.interval)}, {seeds}"
    else:
        value += f", {seeds}"
    others = [name for name in standing.estimates if name != standing.best]
    if not others:
        return f"{start}{standing.best} reaches {metric.label} {value}; there is nothing to compare it with."
    if not standing.decided:
        reasons = sorted({c.why for c in standing.comparisons.values() if c.why})
        order = join([f"{n} {metric.show(e.mean)}" for n, e in list(standing.estimates.items())[:_NAMED]])
        return f"{start}no verdict ({'; '.join(reasons)}). In order of {metric.label}: {order}."
    ties = [name for name in standing.group if name != standing.best]
    worse = [name for name in others if standing.comparisons[name].verdict == "worse"]
    unjudged = [name for name in others if standing.comparisons[name].verdict == "none"]
    leads = "leads" if ties or unjudged else "is best"
    layout = findings.layout
    name = f"{layout.series} {standing.best}" if layout.series in layout.numbers else standing.best
    parts = [f"{start}{name} {leads} ({metric.label} {value})"]
    if ties:
        parts.append(_tied(ties, len(others)))
    if worse:
        parts.append(_worse(metric, standing, worse))
    if unjudged:
        named = join(unjudged) if len(unjudged) <= _NAMED else f"{len(unjudged)} others"
        reasons = sorted({standing.comparisons[name].why for name in unjudged})
        parts.append(f"no verdict on {named} ({'; '.join(reasons)})")
    return "; ".join(parts) + "."


def _tied(ties: Sequence[str], others: int) -> str:
    if len(ties) == others:
        return "none of the others can be told from it" if len(ties) > 1 else f"{ties[0]} cannot be told from it"
    if len(ties) > _NAMED:
        return f"{len(ties)} others cannot be told from it"
    return f"{join(ties)} cannot be told from it"


def _worse(metric: Metric, standing: Standing, worse: Sequence[str]) -> str:
    effects = {name: standing.comparisons[name].effect for name in worse}
    if len(worse) <= _NAMED:
        parts = [f"{name} ({effect_words(metric, effects[name])})" for name in worse]
        return f"worse: {join(parts)}"
    ordered = sorted(effects.values(), reverse=not metric.lower)
    span = f"{effect_words(metric, ordered[0])} to {effect_words(metric, ordered[-1])}"
    return f"{len(worse)} are worse ({span})"


def _overview(findings: Findings, metric: Metric) -> str:
    """In how many places each setting is among the best."""
    layout = findings.layout
    standings = [findings.standing(metric, place) for place in findings.places]
    decided = [standing for standing in standings if standing.decided]
    settings = f"{count(len(layout.settings), 'value')} of {layout.series}"
    runs = f"{settings}, {count(len(layout.cells), 'run')}, {count(len(layout.seeds), 'seed')}"
    if not decided:
        why = " One seed tells nothing about how results scatter." if len(layout.seeds) == 1 else ""
        return f"{runs}: no verdict by {metric.label}.{why}"
    alone: dict[str, int] = {}
    among: dict[str, int] = {}
    for standing in decided:
        for name in standing.group:
            among[name] = among.get(name, 0) + 1
        if standing.alone and standing.best is not None:
            alone[standing.best] = alone.get(standing.best, 0) + 1
    places = count(len(decided), "comparison")
    won = sorted(alone, key=lambda name: -alone[name])
    text = f"{runs}, judged by {metric.label} in {places}. "
    if won:
        text += f"Best alone: {join([f'{name} in {alone[name]}' for name in won[:_NAMED]])}. "
    if not won or sum(alone.values()) < len(decided):
        left = len(decided) - sum(alone.values())
        text += f"In {left} nothing is best alone. "
    always = [name for name, number in among.items() if number == len(decided)]
    if always and len(always) <= 2 * _NAMED:
        text += f"Never worse than the best: {join(always)}."
    elif always:
        text += f"{len(always)} settings are never worse than the best."
    else:
        text += "No setting is among the best everywhere."
    return text


def _in_short(findings: Findings, metric: Metric) -> str:
    """One sentence on another metric."""
    standings = {place: findings.standing(metric, place) for place in findings.places}
    decided = {place: s for place, s in standings.items() if s.decided}
    if not decided:
        return f"By {metric.label}: no verdict."
    groups: dict[str, int] = {}
    for found in decided.values():
        names = [name for name in findings.layout.settings if name in found.group]
        tied = join(names) if len(names) <= _NAMED else f"{len(names)} settings"
        key = f"{tied} tied" if len(names) > 1 else f"{tied} alone" if found.alone else f"{tied}, others not judged"
        groups[key] = groups.get(key, 0) + 1
    ordered = sorted(groups.items(), key=lambda group: -group[1])
    parts = [f"{group} in {number}" for group, number in ordered[:_NAMED]]
    parts += [f"others in {sum(number for _, number in ordered[_NAMED:])}"] if len(ordered) > _NAMED else []
    return f"By {metric.label}, of {count(len(decided), 'comparison')} best: {'; '.join(parts)}."


def limits(findings: Findings, metric: Metric) -> list[str]:
    """What the numbers do not carry."""
    layout, found = findings.layout, []
    standings = [findings.standing(metric, place) for place in findings.places]
    comparisons = [c for standing in standings for c in standing.comparisons.values()]
    seeds, drawn = len(layout.seeds), "seeds and segments of the text" if metric.segments else "seeds"
    if seeds == 1:
        found.append("One seed: differences may be chance. No claim is made, whatever the order.")
    else:
        found.append(
            f"A tie means that no difference was shown with {count(seeds, 'seed')}, not that there is none."
            f"{_seen(metric, comparisons)}"
        )
        found.append(
            "Better or worse needs Student's interval of the differences between runs with the same seed, the "
            f"bootstrap interval over {drawn}, and a p-value below 5 % after Holm's correction for the comparisons at "
            "one place to say so. The best is picked by the numbers it is then compared by, which flatters it a little."
        )
    if seeds == 2:
        found.append("Two seeds are the fewest that anything can be said from; intervals from two are very wide.")
    still = sum("changes nothing" in c.why for c in comparisons)
    if still:
        found.append(
            f"{told(count(still, 'comparison'))} of runs that the seed does not change: one measurement, no verdict."
        )
    if findings.results.missing:
        more = count(findings.results.missing, "run")
        found.append(
            f"The study is not finished: {more} more {'is' if findings.results.missing == 1 else 'are'} to come."
        )
    found += findings.results.notes
    failed = [cell for cell in layout.cells if cell.status == "failed"]
    if failed:
        names = list(dict.fromkeys(layout.setting(cell) for cell in failed))
        runs = count(len(failed), "run")
        shown = join(names) if len(names) <= _NAMED else f"{len(names)} settings"
        found.append(f"{runs} of {len(layout.cells)} failed ({shown}); means are over what is left.")
    models = layout.labels.get("model", ())
    model = f"the model {models[0]}" if len(models) == 1 else f"these {len(models)} models"
    found.append(
        f"It holds for {model}, this text, these settings and this budget. "
        "Intervals are about what another seed would give, not another model."
    )
    if any(not m.ratio for m in findings.metrics):
        found.append("Accuracies: the intervals do not count that other questions could have been asked.")
    return found


def _seen(metric: Metric, comparisons: Sequence[object]) -> str:
    """How small a difference typical intervals would have shown."""
    halves = []
    for c in comparisons:
        student = getattr(c, "student", None)
        if student is not None and all(math.isfinite(end) for end in student):
            low, high = student
            halves.append(math.sqrt(high / low) if metric.ratio else (high - low) / 2)
    if not halves:
        return ""
    half = statistics.median(halves)
    words = f"{100 * (half - 1):.1f} %" if metric.ratio else f"{100 * half:.1f} points"
    return f" Half of the intervals reach {words} or more to either side; smaller differences had little chance."
