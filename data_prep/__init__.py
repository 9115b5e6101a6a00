"""One clip at a time: list, read, cut, measure, judge, shard and plan batches. Knows no Ray."""
