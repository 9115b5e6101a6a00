"""Everything that only a GPU can tell, measured by one command: `python -m benchmarks.gpu --output DIR`."""
