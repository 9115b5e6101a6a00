"""Training runs: Ray Train starts the workers, DeepSpeed shards the model, one loop trains every task.

The path of a run, from the outside in:

    driver       `train`: check the user's input, start the workers, write the summary
    launch       start the workers under Ray Train, and wait until they are done
    relay        while they train, pass metrics and checkpoints on to the tracking server and the progress display
    worker       what every worker runs; `Trainer.train` is one training step from top to bottom
    tasks        what is trained: `tasks.base` says what a task is, and how to write one

What the loop uses:

    deepspeed    DeepSpeed's import and configuration, and an engine around a module
    metrics      the loss of a batch, means over steps and ranks, rates, and metrics.jsonl
    schedule     the learning rate as a function of the step
    ema          the moving average of the weights, which is what a run exports
    checkpoint   write a checkpoint while training continues; load it
    reshard      load a checkpoint that another number of workers wrote
    partitions   the fp32 partitions that a rank holds, and how to gather complete parameters
    sequence_parallel   several ranks share the tokens of one sample

Before a run: `budget` estimates the memory and time that it needs.
"""
