"""Problems of declared groups: each kind once, however many layers have it."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphprune.inventory import plural


@dataclass
class Problems:
    """What is wrong with a spec's declared groups, by its path in the spec."""

    _found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, path: str, kind: str, text: str) -> None:
        """Notes a problem; of those with the same path and kind only the first is told, and how many there are."""
        self._found.setdefault((path, kind), []).append(text)

    def __bool__(self) -> bool:
        return bool(self._found)

    def texts(self) -> list[str]:
        """One text per path and kind, in the order in which they were found."""
        return [
            f"{path}: {texts[0]}" + (f" (and {plural(len(texts) - 1, 'more case')})" if len(texts) > 1 else "")
            for (path, _), texts in self._found.items()
        ]
