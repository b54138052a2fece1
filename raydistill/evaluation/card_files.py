"""The files of a run's report card, in the run's folder."""

CARD = "card.json"
PREDICTIONS = "predictions.parquet"
CORRELATION = "correlation.csv"
PANELS = "panels.json"
