"""Training: `engine.train` is the driver's side, `loop` what every worker runs, `task` what a task must say."""
