"""What a person sees of a sweep: tables to figures, figures to one page and to files for a paper."""

NAME = "report.html"  # in a run's folder
