"""Merge operators: their table, their formulas, and the engine that applies them."""
