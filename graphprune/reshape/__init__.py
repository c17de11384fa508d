"""Cutting a model to its plan: tensors, adapters, module sizes, and the config that describes the result."""

from graphprune.reshape.apply import Replacement, cut_model
from graphprune.reshape.config import settle_config
from graphprune.reshape.cut import cut_tensor, plan_cuts
from graphprune.reshape.reshape import reshape

__all__ = ["Replacement", "cut_model", "cut_tensor", "plan_cuts", "reshape", "settle_config"]
