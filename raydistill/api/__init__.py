"""Distillation of networks and data sets that exist as objects, in a notebook or a script."""
