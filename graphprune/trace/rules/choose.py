"""Operations that ask for positions: what they lead to goes through Python and is not followed."""

from __future__ import annotations

from graphprune.trace.axes import fresh
from graphprune.trace.choices import CHOOSING, REASON
from graphprune.trace.record import Kind
from graphprune.trace.rules.table import Call, rule


@rule(*CHOOSING)
def choose(call: Call) -> None:
    """Every axis that positions are asked along is frozen; results have axes of their own."""
    info = call.info(call["self"])
    if info.kind is not Kind.CONSTANT:
        for expr in info.dims:
            call.tracer.freeze(expr, f"{REASON} ('{call.name}')")
        where = call.tracer.where or "the model"
        call.tracer.notes.append(f"'{call.name}' in {where} finds positions in data; one of them was followed")
    for i, output in enumerate(call.outputs):
        call.put([fresh(n) for n in output.shape], output=i)
