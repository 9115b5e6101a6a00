"""A set on disk: its layout, its tables, and how a segment is committed to it."""
