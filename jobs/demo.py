"""`kinotone demo`: the main job end to end, one verb after another, on embedded defaults.

Each stage writes to a folder under the output and resumes there. A demo that was stopped resumes; one that is finished
only prints where its files are.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

import model
from data_prep.dataset.index import read_manifest, round_robin
from data_prep.synthetic import generate as synthesise
from jobs.progress import Display
from jobs.settings import Recipe
from model import weights
from pipelines.cluster import ray_running
from pipelines.dataflow.prepare import run_prepare
from pipelines.generate import generate
from pipelines.training.driver import train

# Trained first and in this order, because the DiT learns in their latent space.
CODECS = ("video-vae", "audio-vae", "vocoder")
PROMPTS = 4


def run_demo(recipe: Recipe, output: Path, inputs: list[str], display: Display) -> None:
    """Turn clips into a trained tiny model and a playable mp4, and print where everything is.

    Args:
        recipe: settings of every stage.
        output: folder of all stages.
        inputs: the user's own clips; a synthetic corpus is made when there are none.
        display: shows progress.
    """
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    with ray_running(recipe.for_task("dit").workers.count):  # one Ray for all stages
        losses = _stages(recipe, output, inputs, display)
    start, end = losses["loss_at_start"], losses["loss_at_end"]
    change = ", ".join(f"{name} {start[name]:.3f} → {end[name]:.3f}" for name in ("loss/video", "loss/audio"))
    display.say(
        f"\n[bold green]Done[/] in {time.monotonic() - began:.0f} s.\n"
        f"  report   {output / 'curated' / 'report.html'}\n"
        f"  sample   {output / 'samples' / '000.mp4'}\n"
        f"  losses   {change}\n"
        f"  MLflow   {output / 'mlflow.db'}   (make ui)"
    )


def _stages(recipe: Recipe, output: Path, inputs: list[str], display: Display) -> dict[str, Any]:
    """Run all stages in turn; return the summary of the DiT's training."""
    place = {name: output / name for name in ("curated", "captioned", "encoded", "text-conditioner", *CODECS, "dit")}

    def fit(task: str, source: Path, init_from: tuple[Path, ...] = ()) -> dict[str, Any]:
        given = {"input": str(source), "init_from": tuple(map(str, init_from))}
        settings = recipe.for_task(task).model_copy(update=given)
        return train(task, settings, place[task], recipe.tracking, display)

    if not inputs:
        display.say("[bold]Synthesise[/]  a labelled corpus: visible events with their sounds, speech, music, noise")
        inputs = [str(synthesise(recipe.synth, output / "corpus", display) / "clips")]

    display.say("[bold]Curate[/]      cut, listen, and keep the clips with informative sound")
    run_prepare(("curate",), inputs, place["curated"], {"curate": recipe.curate}, recipe.tracking, display)
    display.say("[bold]Caption[/]     what is said, heard and seen, from measured facts alone")
    source = [str(place["curated"])]
    run_prepare(("caption",), source, place["captioned"], {"caption": recipe.caption}, recipe.tracking, display)

    display.say("[bold]Train[/]       the video VAE, the audio VAE and the vocoder, by reconstruction")
    for task in CODECS:
        fit(task, place["curated"])
    _text_conditioner(recipe, place["text-conditioner"])

    display.say("[bold]Encode[/]      video latents, audio latents, text features, and the training index")
    parts = {"video_vae": "video-vae", "audio_vae": "audio-vae", "text_conditioner": "text-conditioner"}
    encode = recipe.encode.replace(**{part: str(place[name] / "weights") for part, name in parts.items()})
    source = [str(place["captioned"])]
    run_prepare(("encode",), source, place["encoded"], {"encode": encode}, recipe.tracking, display)

    display.say("[bold]Train[/]       the dual-stream DiT: rectified flow on both modalities, ZeRO-3 on two workers")
    given = tuple(place[name] / "weights" for name in (*CODECS, "text-conditioner"))
    losses = fit("dit", place["encoded"], given)

    display.say("[bold]Generate[/]    picture and sound together from captions of the corpus")
    samples = output / "samples"
    generate(place["dit"], _prompts(place["encoded"]), recipe.generate, samples, recipe.tracking, display)
    return losses


def _text_conditioner(recipe: Recipe, folder: Path) -> None:
    """Write the text projection and connectors, initialised under the recipe's seed.

    A random projection keeps the information in the text features, and the connectors train with the DiT.
    """
    settings = recipe.for_task("dit")
    if not (folder / "weights" / "text_conditioner.safetensors").exists():
        torch.manual_seed(settings.seed)
        weights.save(model.build(settings.preset, components=["text_conditioner"]), folder / "weights", "kinotone")


def _prompts(encoded: Path) -> list[str]:
    """Pick captions of the corpus, one of each sound class in turn: a tiny model has seen nothing else."""
    rows = read_manifest(encoded).select(["clip_id", "verdict", "sound_class", "caption"]).to_pylist()
    kept = sorted((row for row in rows if row["verdict"] == "kept"), key=lambda row: row["clip_id"])
    if not kept:
        raise ValueError(f"{encoded} holds no kept clip; its report says why each was dropped")
    return [json.loads(row["caption"])["text"] for row in round_robin(kept, PROMPTS)]
