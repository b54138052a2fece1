"""Copies of runs on a storage, kept while the runs grow, from which they go on elsewhere."""
