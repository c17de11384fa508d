"""What a run cost and what it gained: measures of a model, time and memory of stages, the report."""

from graphprune.report.measures import Measures, measure
from graphprune.report.report import Report
from graphprune.report.stages import Stage, StageClock

__all__ = ["Measures", "Report", "Stage", "StageClock", "measure"]
