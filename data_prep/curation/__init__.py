"""Curation: divide a source segment into clips and give each clip a verdict (kept, dropped or failed)."""
