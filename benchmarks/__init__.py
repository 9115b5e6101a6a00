"""Measurements of speed, memory and accuracy, each run with `python -m benchmarks.NAME`; figures in RESULTS.md."""
