"""Sweeps: which runs a table of results takes (`sweeps.py`), and where they run (`local.py`)."""
