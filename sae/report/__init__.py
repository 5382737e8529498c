"""Figures from a run's tables, for an HTML page, notebooks and papers; and what the terminal shows of a run."""

NAME = "report.html"  # the page, in a run's folder
FEATURES = "features.html"  # the page of features, beside it
