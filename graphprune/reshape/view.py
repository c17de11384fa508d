"""A config as one module sees it: a few integers of its own, everything else read through."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


class ConfigView:
    """Reads and writes go to ``base``, except for the attributes it was given.

    Some forwards read a size from the shared config. Where layers end up different, each such module gets
    its own view; a copy would go stale when something else of the config is changed later.
    """

    def __init__(self, base: Any, own: dict[str, int]) -> None:
        self.__dict__.update(own, _base=base, _own=tuple(own))

    def __getattr__(self, name: str) -> Any:
        if name == "_base" or name.startswith("__"):  # while being copied there is no base yet
            raise AttributeError(name)
        return getattr(self._base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self._base, name, value)

    def own(self) -> dict[str, int]:
        """The attributes that differ from the shared config."""
        return {name: self.__dict__[name] for name in self.__dict__["_own"]}

    def __deepcopy__(self, memo: dict[int, Any]) -> ConfigView:
        return ConfigView(copy.deepcopy(self._base, memo), self.own())

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigView, (self._base, self.own())


def is_view(value: Any) -> bool:
    """Whether ``value`` is a view of a config: one of these, or of the kind that a modelling file makes for itself."""
    own = vars(value) if hasattr(value, "__dict__") else {}
    return "_base" in own and "_own" in own


def own_values(view: Any) -> dict[str, int]:
    """The attributes of a view of any kind that differ from the shared config."""
    return {name: vars(view)[name] for name in vars(view)["_own"]}


def holds(module: nn.Module, config: Any) -> bool:
    """Whether ``module`` has ``config``, or a view of it, as an attribute."""
    return any(v is config or (is_view(v) and v._base is config) for v in vars(module).values())


def give_view(module: nn.Module, config: Any, own: dict[str, int]) -> None:
    """Lets ``module`` see ``own`` instead of what ``config`` says."""
    for name, value in list(vars(module).items()):
        if is_view(value) and value._base is config:
            module.__dict__[name] = ConfigView(config, {**own_values(value), **own})
        elif value is config:
            module.__dict__[name] = ConfigView(config, own)


def take_views(model: nn.Module) -> None:
    """Gives every module of ``model`` the shared config back."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if is_view(value):
                module.__dict__[name] = value._base
