"""The HTML report of a set, and the pictures and statistics it shows."""
