"""The training tasks, one per file. `base` says what a task is; `helpers` has the code that several tasks share."""
