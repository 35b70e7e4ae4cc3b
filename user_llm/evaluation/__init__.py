"""Ranks of test labels, the metrics over them with intervals, baselines, and the report."""
