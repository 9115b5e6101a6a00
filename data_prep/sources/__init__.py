"""The sources that a person names: files, folders, globs, tars, lists and URIs."""
