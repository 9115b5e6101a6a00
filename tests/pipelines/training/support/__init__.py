"""Helpers of the training tests: small sets, recorded samples, and the comparison of runs."""
