"""Every task learns clips of the synthetic corpus: two real ranks, the tiny recipe with more steps.

`FALLS` has the factor by which a run's loss falls (from its first tenth to its last) and the values that it reaches:
four clips are memorised; 200 are learned as far as some minutes on two cores allow. `dit` and `text-projection` get the
latents of the VAEs that the first two tests train.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import model
from data_prep.settings import SynthSettings
from data_prep.synthetic import generate as synthesise
from jobs.settings import load_recipe
from model import weights
from pipelines.dataflow.prepare import run_prepare
from pipelines.training.driver import train
from pipelines.training.metrics import METRICS, read_metrics
from pipelines.training.settings import TrainSettings

pytestmark = pytest.mark.slow

MIX = dict.fromkeys(("ball", "bars", "speech", "music"), 1)
QUIET = dict.fromkeys(("bird", "clock", "cuts", "silence", "near_silent", "hiss", "hum", "tone", "no_audio"), 0)


@dataclass(frozen=True)
class Fall:
    """What a task's run must reach.

    Attributes:
        steps: of the run.
        factor: smallest ratio of the loss at the start to the loss at the end.
        floors: largest mean over the last tenth, by metric; for `psnr_db`, the smallest.
    """

    steps: int
    factor: float
    floors: dict[str, float]


# By number of clips.
FALLS = {
    4: {
        "video-vae": Fall(200, 4.0, {"loss/l1": 0.08, "psnr_db": 24.0}),
        "audio-vae": Fall(150, 2.0, {"loss/l1": 0.7}),
        "vocoder": Fall(120, 1.7, {"loss/mel": 1.2}),
        "upscaler": Fall(100, 8.0, {"loss/latent": 0.02}),
        "dit": Fall(200, 2.0, {"loss/video": 0.5, "loss/audio": 1.0}),
        "text-projection": Fall(80, 1.2, {"loss/video": 1.0, "loss/audio": 1.5}),
    },
    200: {
        "video-vae": Fall(400, 1.4, {"loss/l1": 0.24, "psnr_db": 16.0}),
        "audio-vae": Fall(300, 2.0, {"loss/l1": 0.7}),
        "vocoder": Fall(250, 1.7, {"loss/mel": 1.2}),
        "upscaler": Fall(200, 1.5, {"loss/latent": 0.5}),
        "dit": Fall(400, 2.0, {"loss/video": 0.5, "loss/audio": 1.0}),
        "text-projection": Fall(150, 1.2, {"loss/video": 1.0, "loss/audio": 1.5}),
    },
}
# Pictures small enough for two cores: the same nine frames of each clip in every step.
PICTURE = {"buckets": [{"frames": 9, "height": 64, "width": 64}], "crop_frames": 9, "crop_size": 64}
SIZES: dict[str, dict[str, Any]] = {
    "video-vae": {"video_vae": PICTURE},
    "upscaler": {"upscaler": PICTURE},
    "audio-vae": {"audio_vae": {"crop_latents": 13}},
    "vocoder": {"vocoder": {"crop_mel_frames": 32}},
}


class Place:
    """A folder of sets and runs; each is made on its first use."""

    def __init__(self, root: Path, clips: int) -> None:
        self.root, self.clips, self.recipe = root, clips, load_recipe("tiny")

    def made(self, name: str, make: Callable[[Path], Any]) -> Path:
        path = self.root / name
        if not path.exists():
            make(path)
        return path

    @property
    def curated(self) -> Path:
        synth = SynthSettings.model_validate({"clips": self.clips, "seconds_max": 2.6, "mix": {**QUIET, **MIX}})
        corpus = self.made("corpus", lambda path: synthesise(synth, path)) / "clips"
        settings = {"curate": self.recipe.curate}
        return self.made("curated", lambda path: run_prepare(("curate",), [str(corpus)], path, settings))

    @property
    def encoded(self) -> Path:
        captioned = self.made("captioned", lambda path: run_prepare(("caption",), [str(self.curated)], path))
        given = {"video_vae": "video-vae", "audio_vae": "audio-vae"}
        parts = {part: str(self.trained(task) / "weights") for part, task in given.items()}
        parts["text_conditioner"] = str(self.conditioner)
        encode = self.recipe.encode.model_copy(update=parts)
        return self.made("encoded", lambda path: run_prepare(("encode",), [str(captioned)], path, {"encode": encode}))

    @property
    def conditioner(self) -> Path:
        def save(path: Path) -> None:
            torch.manual_seed(0)
            weights.save(model.build("tiny", components=["text_conditioner"]), path)

        return self.made("conditioner", save)

    def trained(self, task: str) -> Path:
        encoded = task in ("dit", "text-projection")
        source = self.encoded if encoded else self.curated
        given = {"dit": [self.conditioner], "upscaler": [self.root / "video-vae" / "weights"]}.get(task, [])
        if task == "upscaler":
            self.trained("video-vae")
        base = self.recipe.for_task(task).model_dump()
        settings = TrainSettings.model_validate(
            {
                **base,
                "input": str(source),
                "init_from": [str(path) for path in given],
                "steps": FALLS[self.clips][task].steps,
                "optimizer": {**base["optimizer"], "lr": 2e-3},
                "checkpoint": {"every_steps": 50},
                **SIZES.get(task, {}),
            }
        )
        assert settings.workers.count == 2
        return self.made(task, lambda path: train(task, settings, path))


@pytest.fixture(scope="module")
def places(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Place]:
    return {clips: Place(tmp_path_factory.mktemp(f"clips{clips}"), clips) for clips in FALLS}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("clips", "task"), [(clips, task) for clips in FALLS for task in FALLS[clips]])
def test_clips_are_learnt(places: dict[int, Place], clips: int, task: str) -> None:
    output, fall = places[clips].trained(task), FALLS[clips][task]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["samples"] == clips
    assert summary["skipped_steps"] == 0
    records = read_metrics(output / METRICS)
    last = records[-len(records) // 10 :]
    start, end = summary["loss_at_start"]["loss"], summary["loss_at_end"]["loss"]
    reached = {key: sum(record[key] for record in last) / len(last) for key in fall.floors}
    print(f"\n{task}: {summary['samples']} samples, loss {start:.3f} → {end:.3f} (÷ {start / end:.2f}), {reached}")
    assert start / end >= fall.factor
    for key, floor in fall.floors.items():
        assert reached[key] >= floor if key == "psnr_db" else reached[key] <= floor, key
