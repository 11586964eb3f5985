"""Sums, Python, Spanish and stories on a 260k-parameter Llama: the first campaign to run."""
