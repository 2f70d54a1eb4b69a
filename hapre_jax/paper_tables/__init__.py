"""The tables of the paper: their films, runs, tests and records."""
