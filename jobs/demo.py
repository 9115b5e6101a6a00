"""`kinotone demo`: run the other verbs one after the other, from clips to a playable mp4, on embedded defaults.

Each stage writes to a folder under the output and resumes there. So a demo that was stopped continues, and a finished
one only prints where the results are.
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

# The tasks that are trained first, in this order: they encode media to latents, on which the DiT is trained.
CODECS = ("video-vae", "audio-vae", "vocoder")
PROMPTS = 4  # samples to generate


def run_demo(recipe: Recipe, output: Path, inputs: list[str], display: Display) -> None:
    """Run all stages: train a tiny model on clips, generate mp4 files with it, and print where the results are.

    Args:
        recipe: the settings of all stages.
        output: the folder in which each stage has a folder.
        inputs: the user's clips; empty: make a synthetic corpus.
        display: shows the progress.
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
    """Run all stages, and return the summary of the DiT's training, which has its losses."""
    folders = {name: output / name for name in ("curated", "captioned", "encoded", "text-conditioner", *CODECS, "dit")}

    def fit(task: str, source: Path, init_from: tuple[Path, ...] = ()) -> dict[str, Any]:
        given = {"input": str(source), "init_from": tuple(map(str, init_from))}
        settings = recipe.for_task(task).model_copy(update=given)
        return train(task, settings, folders[task], recipe.tracking, display)

    if not inputs:
        display.say("[bold]Synthesise[/]  a labelled corpus: visible events with their sounds, speech, music, noise")
        inputs = [str(synthesise(recipe.synth, output / "corpus", display) / "clips")]

    display.say("[bold]Curate[/]      cut, listen, and keep the clips with informative sound")
    run_prepare(("curate",), inputs, folders["curated"], {"curate": recipe.curate}, recipe.tracking, display)
    display.say("[bold]Caption[/]     what is said, heard and seen, from measured facts alone")
    source = [str(folders["curated"])]
    run_prepare(("caption",), source, folders["captioned"], {"caption": recipe.caption}, recipe.tracking, display)

    display.say("[bold]Train[/]       the video VAE, the audio VAE and the vocoder, by reconstruction")
    for task in CODECS:
        fit(task, folders["curated"])
    _text_conditioner(recipe, folders["text-conditioner"])

    display.say("[bold]Encode[/]      video latents, audio latents, text features, and the training index")
    parts = {"video_vae": "video-vae", "audio_vae": "audio-vae", "text_conditioner": "text-conditioner"}
    encode = recipe.encode.model_copy(update={part: str(folders[name] / "weights") for part, name in parts.items()})
    source = [str(folders["captioned"])]
    run_prepare(("encode",), source, folders["encoded"], {"encode": encode}, recipe.tracking, display)

    display.say("[bold]Train[/]       the dual-stream DiT: rectified flow on both modalities, ZeRO-3 on two workers")
    given = tuple(folders[name] / "weights" for name in (*CODECS, "text-conditioner"))
    losses = fit("dit", folders["encoded"], given)

    display.say("[bold]Generate[/]    picture and sound together from captions of the corpus")
    samples = output / "samples"
    generate(folders["dit"], _prompts(folders["encoded"]), recipe.generate, samples, recipe.tracking, display)
    return losses


def _text_conditioner(recipe: Recipe, folder: Path) -> None:
    """Write untrained weights of the text projection and connectors to `folder/weights`, unless they are there.

    The recipe's seed decides their values. The projection needs no training, because a random one keeps the information
    of the text encoder; the connectors are trained together with the DiT.
    """
    settings = recipe.for_task("dit")
    if not (folder / "weights" / "text_conditioner.safetensors").exists():
        torch.manual_seed(settings.seed)
        weights.save(model.build(settings.preset, components=["text_conditioner"]), folder / "weights", "kinotone")


def _prompts(encoded: Path) -> list[str]:
    """Return captions of the corpus, from each sound class in turn: the tiny model has seen no other text."""
    rows = read_manifest(encoded).select(["clip_id", "verdict", "sound_class", "caption"]).to_pylist()
    kept = [row for row in sorted(rows, key=lambda row: row["clip_id"]) if row["verdict"] == "kept"]
    if not kept:
        raise ValueError(f"{encoded} holds no kept clip; its report says why each was dropped")
    return [json.loads(row["caption"])["text"] for row in round_robin(kept, PROMPTS)]
