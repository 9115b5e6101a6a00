"""Runs, metrics and artifacts for MLflow, and metrics for Prometheus."""
