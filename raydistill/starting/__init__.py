"""Experiment files for those who begin: drafted for a goal, explained key by key, checked before they are written."""
