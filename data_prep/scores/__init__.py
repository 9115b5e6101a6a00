"""Measure one clip: its sound, its picture, and whether they belong together."""
