"""What a person sees of a sweep: tables to figures, figures to one page and to files for a paper."""
