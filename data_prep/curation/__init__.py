"""From a source segment to its clips, each with a verdict."""
