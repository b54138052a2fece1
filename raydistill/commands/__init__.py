"""The commands, a file for each group of them; ``raydistill.cli`` puts them together."""
