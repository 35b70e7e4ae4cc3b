"""Datasets on many workers: each takes the steps of `Rules` over pieces of the files and groups of users.

Beam hands out the pieces, and groups the rows by user. `apache_beam` is imported by `runner.py` alone: it lives in an
environment of its own (`make beam`).
"""
