"""Fuzzing of what reads files and arguments of strangers; see `python -m fuzz --help`."""
