"""The files of a run's report card, in the run's folder."""

CARD = "card.json"
PREDICTIONS = "predictions.parquet"
CORRELATION = "correlation.csv"
PANELS = "panels.json"
DETECTION, SEGMENTATION = "detection.json", "segmentation.json"
DOWNSTREAM = (DETECTION, SEGMENTATION)
"""What ``experiments/downstream`` adds to the card."""
