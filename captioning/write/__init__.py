"""Facts to sentences: the composer, its vocabulary and its wording."""
