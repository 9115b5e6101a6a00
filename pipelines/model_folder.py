"""Where weights lie: a training run's output holds them in `weights/`; a model folder or file is taken as it is."""

from pathlib import Path


def model_folder(checkpoint: Path) -> Path:
    """The weights of a training run's output, of a model folder in any layout, or of a single file.

    Raises:
        ValueError: there is nothing at `checkpoint`.
    """
    if not checkpoint.exists():
        raise ValueError(f"checkpoint {checkpoint}: not there; give a training run's output, a model folder or file")
    return checkpoint / "weights" if (checkpoint / "weights").is_dir() else checkpoint
