"""Sweeps of students."""
