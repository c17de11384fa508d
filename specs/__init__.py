"""YAML only: recipes/ (published methods as specs), architectures/ (what tracing cannot see), tasks/ (for lm-eval).

Read through `importlib.resources.files("graphprune.specs")`; there is no code here.
"""
