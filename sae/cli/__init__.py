"""The command line: one file per command, each with its options, its help and its `main`.

To add a command, write such a file, which ends in `COMMAND = Command(usage, about, main)`, and name it in `main.py`.
"""
