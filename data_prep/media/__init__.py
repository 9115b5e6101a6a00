"""One file's picture and sound: read its container, decode it, cut it, write it."""
