"""The Ray Data dataflow: curate, caption and encode segments, and commit them to a set."""
