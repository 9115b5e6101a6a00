"""The checker: it removes the sentences of a caption that do not follow from the facts."""
