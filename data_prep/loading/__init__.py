"""From an encoded set to batches: buckets, the batch plan, and the loader."""
