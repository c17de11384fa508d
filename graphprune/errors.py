"""Every error a user can meet derives from :class:`GraphPruneError`.

A message says what was expected, what was found, where, and what to do next. The command line prints the message alone
and exits with :attr:`GraphPruneError.exit_code`; a traceback is shown for anything else, because that is a bug of ours.
"""

from __future__ import annotations


class GraphPruneError(Exception):
    """Base of all errors raised on purpose by graphprune."""

    exit_code = 2


class SpecError(GraphPruneError):
    """A spec is malformed, contradicts itself, or does not fit the model; lists every problem at once."""

    def __init__(self, problems: list[str] | tuple[str, ...] | str, source: str = "spec") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class SelectionError(GraphPruneError):
    """A selection of groups is malformed or matches nothing."""


class TraceError(GraphPruneError):
    """The model's forward could not be run or followed by the tracer; ``where`` is the path of the module, if known."""

    def __init__(self, message: str, where: str = "") -> None:
        self.where = where
        super().__init__(message)


class GraphError(GraphPruneError):
    """The file of a dependency graph is missing, damaged, or contradicts itself."""


class PlanError(GraphPruneError):
    """A plan removes what it must not remove, or belongs to another graph."""


class ReshapeError(GraphPruneError):
    """A model does not have the tensors or sizes that the plan speaks about."""


class CheckpointError(GraphPruneError):
    """A checkpoint folder is missing, damaged, not empty, or not loadable."""


class StreamError(CheckpointError):
    """Something needs the numbers of a weight that a streamed model leaves in its file until it is written."""


class DataError(GraphPruneError):
    """Calibration, training or evaluation text is missing, empty or too short."""


class CriterionError(GraphPruneError):
    """A criterion is unknown, lacks what it needs, or produced something that is no score."""


class NonFiniteError(GraphPruneError):
    """A loss, gradient or score is NaN or infinite; names the group or tensor and the step."""


class DivergedError(NonFiniteError):
    """A training has diverged; what was in order before is kept where the run keeps checkpoints."""


class DistributedError(GraphPruneError):
    """The processes of a run differ where they must be alike, or divide a model in a way that cannot be followed."""


class OtherProcessError(DistributedError):
    """Another process of the same run has failed, and says what it met; this one cannot go on without it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"stopped, because another process of this run has failed: {message}")


class MissingExtraError(GraphPruneError):
    """An optional dependency is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'graphprune[{extra}]'"
        )
