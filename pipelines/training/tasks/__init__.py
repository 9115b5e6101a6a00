"""The training tasks, one per file. `base` says what a task is; `helpers` holds what several tasks share."""
