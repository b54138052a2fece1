"""Tests of raydistill.data; tests/data holds files."""
