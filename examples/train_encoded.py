"""Train the transformer (task dit) on an encoded set, on this machine.

    python examples/train_encoded.py ENCODED WEIGHTS RUN --steps 200

ENCODED is what `kinotone encode` or `kinotone prepare` made; WEIGHTS is the model folder that it encoded with. The same
command resumes the run. RUN holds checkpoints, metrics.jsonl, an MLflow store, and the model folder RUN/weights.
"""

import argparse
from pathlib import Path

from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import CheckpointSettings, OptimizerSettings, TrainSettings, WorkerSettings


def train_encoded(encoded: Path, weights: Path, output: Path, steps: int) -> dict:
    """Train for `steps` optimizer steps with one worker; return the summary of the run."""
    settings = TrainSettings(
        input=str(encoded),
        init_from=(str(weights),),
        preset="tiny",
        steps=steps,
        log_every=max(1, steps // 20),
        optimizer=OptimizerSettings(lr=1e-3, warmup_steps=min(20, steps // 10)),
        checkpoint=CheckpointSettings(every_steps=max(1, steps // 4)),
        workers=WorkerSettings(count=1),
    )
    return train("dit", settings, output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoded", type=Path, help="the encoded set")
    parser.add_argument("weights", type=Path, help="model folder that the run starts from")
    parser.add_argument("output", type=Path, help="folder of the run")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    arguments = parser.parse_args()
    train_encoded(arguments.encoded, arguments.weights, arguments.output, arguments.steps)
    for record in read_metrics(arguments.output / METRICS):
        print(f"step {record['step']:5.0f}  video {record['loss/video']:.4f}  audio {record['loss/audio']:.4f}")
