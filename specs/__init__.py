"""YAML only: recipes/ (published methods as specs) and architectures/ (what tracing cannot see).

Read through `importlib.resources.files("graphprune.specs")`; there is no code here.
"""
