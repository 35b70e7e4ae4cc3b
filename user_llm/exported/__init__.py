"""A finished run as files that answer without this package.

programs.py   what is computed, as JAX programs for other machines
export.py     the command that writes the folder
runtime.py    what reads it; it goes into the folder, and imports nothing of ours
"""
