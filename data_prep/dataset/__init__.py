"""Read and write a set on disk or in an object store: its files, its tables, and how a segment is committed to it."""
