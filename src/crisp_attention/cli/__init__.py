"""The command line: one file per command, from flags to values."""
