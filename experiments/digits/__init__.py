"""Digits seen three ways by a tiny ViT: a whole zoo in seconds, the fixture of tests."""
