"""Benchmarks: what a score is, where items come from, and one module per kind."""
