"""Networks by name, their inner outputs, and their weights; importing this package imports no torch."""
