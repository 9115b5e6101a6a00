"""The `kinotone` command: its verbs, their settings and the packaged recipes."""
