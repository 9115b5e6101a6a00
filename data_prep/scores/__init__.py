"""Measurements of one clip: its sound, its picture, and how they belong together."""
