"""Tests of raydistill.commands; tests/commands.py is what whole commands are watched with."""
