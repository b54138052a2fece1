"""The teacher: a network, its cached outputs, and the source that hands them to a training step."""
