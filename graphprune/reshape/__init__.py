"""Cutting a model to its plan: tensors, adapters, module sizes, and the config that describes the result."""
