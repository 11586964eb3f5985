"""One YAML file to the Pareto set of merged language models."""

__version__ = "0.1.0"
