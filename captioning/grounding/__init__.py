"""The checker: which sentences of a caption follow from the facts."""
