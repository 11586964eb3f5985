"""Tensors in, tensors out: surrogates, hypervolume, weak-to-strong, Fisher, sparsity, MM-MO."""
