"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.study.report.figures import Picture
from graphprune.study.report.section import Block, Code, Fold, Points, Section, Table


def markdown(title: str, sections: Sequence[Section], most: int = 60) -> str:
    """The report, with its figures from ``figures/``; of longer tables the first ``most`` rows."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block(block, most) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, most: int) -> str:
    if isinstance(block, Picture):
        return f"![{_inline(block.alt)}](figures/{block.name}.png)\n\n*{_inline(block.caption)}*"
    if isinstance(block, Table):
        return _table(block, most)
    if isinstance(block, Code):
        return f"{block.title}:\n\n```{block.language}\n{block.text.rstrip()}\n```"
    if isinstance(block, Fold):
        if not block.essential:
            return f"{block.title}: in report.html, and in the files of `cells/`."
        return "\n\n".join([f"### {block.title}", *(text for part in block.blocks if (text := _block(part, most)))])
    if isinstance(block, Points):
        return "\n".join(f"- {item}" for item in block.items)
    return block


def _table(table: Table, most: int) -> str:
    lines = [table.head, ["---:" if _numeric(table, k) else "---" for k in range(len(table.head))]]
    lines += [[cell.text for cell in row] for row in table.fields[:most]]
    left = len(table.rows) - most
    caption = f"**{table.caption}**\n\n" if table.caption else ""
    more = f"\n\n… and {left} more rows in results.csv." if left > 0 else ""
    return caption + "\n".join(f"| {' | '.join(map(_inline, line))} |" for line in lines) + more


def _numeric(table: Table, column: int) -> bool:
    return any(row[column].number is not None for row in table.fields)


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
