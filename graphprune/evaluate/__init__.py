"""Judging a model: perplexity and tasks as the literature measures them, time, memory, size."""

from graphprune.evaluate.corpora import CORPORA, read_corpus
from graphprune.evaluate.evaluation import Evaluation, Questions, evaluate
from graphprune.evaluate.latency import Latency, latency
from graphprune.evaluate.perplexity import SegmentLosses, perplexity, segment_losses
from graphprune.evaluate.tasks import SUITES, TaskScore, run_tasks

__all__ = [
    "CORPORA",
    "SUITES",
    "Evaluation",
    "Latency",
    "Questions",
    "SegmentLosses",
    "TaskScore",
    "evaluate",
    "latency",
    "perplexity",
    "read_corpus",
    "run_tasks",
    "segment_losses",
]
