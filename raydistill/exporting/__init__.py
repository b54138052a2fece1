"""A trained student as a file that others can run: written, loaded back, compared, described."""
