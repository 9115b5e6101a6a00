"""Training: `driver.train` is the driver's side, `worker` what every worker runs, `tasks.base` what a task must say."""
