"""Benchmarks: each compares things in one run, interleaved, and reports ratios. Not installed."""
