"""One student, one process or many."""
