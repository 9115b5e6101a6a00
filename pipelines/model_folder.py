"""The folder of a checkpoint's weights: in a training run's output it is `weights/`."""

from pathlib import Path


def model_folder(checkpoint: Path) -> Path:
    """Find the weights of a checkpoint.

    Args:
        checkpoint: a training run's output, a model folder in any layout, or a single weight file.

    Returns:
        The `weights` folder of a training run's output; otherwise `checkpoint` itself.

    Raises:
        ValueError: `checkpoint` does not exist.
    """
    if not checkpoint.exists():
        raise ValueError(f"checkpoint {checkpoint}: not there; give a training run's output, a model folder or file")
    return checkpoint / "weights" if (checkpoint / "weights").is_dir() else checkpoint
