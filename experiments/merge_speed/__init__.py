"""How fast merges are: against memory bandwidth, and against mergekit."""
