"""Sample a video with stereo sound from a trained run.

    python examples/sample_checkpoint.py RUN "A red ball bounces twice and knocks." SAMPLES

RUN is the output of a training run with all components (such as that of train_encoded.py), or a model folder.
"""

import argparse
from pathlib import Path

from data_prep.loading.buckets import Bucket
from pipelines.generate import generate
from pipelines.settings import GenerateSettings, ScaleSettings, TrackingSettings


def sample_checkpoint(run: Path, prompt: str, output: Path, frames: int, steps: int) -> Path:
    """Sample one clip by `steps` Euler steps; return the mp4 file."""
    settings = GenerateSettings(
        # Frames are 8·n + 1, height and width multiples of 32: one latent covers 8 × 32 × 32 pixels.
        shape=Bucket(frames=frames, height=128, width=192, fps=24),
        steps=steps,
        video=ScaleSettings(text=3.0),
        audio=ScaleSettings(text=7.0),
        seed=0,
    )
    summary = generate(run, [prompt], settings, output, TrackingSettings())
    return output / summary["samples"][0]["file"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a training run's output, or a model folder")
    parser.add_argument("prompt", help="what is seen and heard")
    parser.add_argument("output", type=Path, help="folder of the sample")
    parser.add_argument("--frames", type=int, default=49, help="frames at 24 per second: 8·n + 1")
    parser.add_argument("--steps", type=int, default=30, help="Euler steps")
    arguments = parser.parse_args()
    print(sample_checkpoint(arguments.run, arguments.prompt, arguments.output, arguments.frames, arguments.steps))
