"""Recipes in, scores out: sources, merge formulas, live models, benchmarks and the worker pool."""
