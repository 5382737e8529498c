"""What everything else stands on: field markers, words, parameters and one pass, metrics, files."""
