"""Generate mp4 files with stereo sound from prompts: encode the text, sample video and audio latents, decode, write.

The text encoder runs first and is freed before sampling, so that it never shares the memory with the transformer.
Sample n of a run depends only on the weights, the settings and its prompt. A run that was stopped keeps its finished
samples and makes the others when it is started again.
"""

import gc
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.dataset import storage
from data_prep.media.write_mp4 import write_mp4
from data_prep.packaged_weights import resolve
from model import LTX2, weights
from model.flow import inference_schedule
from model.guidance import Guidance, GuidanceScales
from model.modality import audio_positions, unpatchify_audio, unpatchify_video, video_positions
from model.sampler import SampleStream, TextContext, sample
from model.text_encoder import GemmaTextEncoder
from pipelines.model_folder import model_folder
from pipelines.report.previews import contact_sheet, spectrogram
from pipelines.settings import GenerateSettings, ScaleSettings, TrackingSettings
from pipelines.tracking.run import start_run

COMPONENTS = ("transformer", "text_conditioner", "video_vae", "audio_vae", "vocoder")


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a text file, one per line; empty lines are skipped.

    Raises:
        ValueError: the file does not exist or has no prompt.
    """
    if not path.is_file():
        raise ValueError(f"prompts {path}: no such file; give a text file with one prompt per line")
    prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"prompts {path}: holds no prompt; write one per line")
    return prompts


def generate(
    checkpoint: Path,
    prompts: list[str],
    settings: GenerateSettings,
    output: Path,
    tracking: TrackingSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Generate one sample per prompt.

    Writes `<output>/000.mp4`, `000.png` (contact sheet), `000.spectrogram.png` and `000.json` for each sample, then
    `settings.yaml` and `summary.json`.

    Args:
        checkpoint: a training run's output, or a model folder with all `COMPONENTS`.
        prompts: the prompts, one per sample.
        settings: shape, steps, guidance and seed of the samples.
        output: the folder to write to.
        tracking: the MLflow server.
        progress: called with the verb, the samples made, and the number of samples.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: the checkpoint does not exist, or a component or the text encoder is missing; raised before
            anything is computed.
    """
    began = time.monotonic()
    folder = model_folder(checkpoint)
    missing = [part for part in COMPONENTS if not (folder / f"{part}.safetensors").is_file()]
    if missing:
        raise ValueError(
            f"checkpoint {checkpoint}: {missing[0]}.safetensors is missing; give a run's output with all parts"
        )
    output.mkdir(parents=True, exist_ok=True)
    key = _run_key(folder, settings)
    samples = [(n, prompt, output / f"{n:03d}.mp4") for n, prompt in enumerate(prompts)]
    todo = [(n, prompt, path) for n, prompt, path in samples if _made_with(path) != [key, prompt]]
    params = {"generate": settings.model_dump(mode="json"), "checkpoint": str(checkpoint)}
    if progress:
        progress("generate", len(samples) - len(todo), len(samples))
    if todo:
        with start_run(tracking, "kinotone", "generate", {"checkpoint": str(checkpoint)}, params, output) as run:
            device = _device(settings.device)
            contexts = _encode_prompts(folder, [prompt for _, prompt, _ in todo], settings, device)
            model = weights.load(
                folder, device=device, components=[p for p in COMPONENTS if p != "text_conditioner"]
            ).eval()
            for done, (n, prompt, path) in enumerate(todo, start=1):
                frames, waveform = _sample(model, contexts[done - 1], settings, settings.seed + n, device)
                write_mp4(path, frames, settings.shape.fps, waveform, model.vocoder.sample_rate)
                path.with_suffix(".png").write_bytes(contact_sheet(frames))
                path.with_suffix(".spectrogram.png").write_bytes(spectrogram(waveform, model.vocoder.sample_rate))
                with storage.atomic_write(path.with_suffix(".json")) as out:
                    out.write(
                        json.dumps({"made_with": [key, prompt], "prompt": prompt, "seed": settings.seed + n}).encode()
                    )
                run.artifact(path, f"samples/{n:03d}")
                run.artifact(path.with_suffix(".json"), f"samples/{n:03d}")
                run.image("sample", path.with_suffix(".png"), n)
                run.image("spectrogram", path.with_suffix(".spectrogram.png"), n)
                if progress:
                    progress("generate", len(samples) - len(todo) + done, len(samples))
    summary = {
        "samples": [{"file": path.name, "prompt": prompt} for _, prompt, path in samples],
        "made_now": len(todo),
        "seconds": round(time.monotonic() - began, 1),
    }
    (output / "settings.yaml").write_text(_yaml(params))
    (output / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    return summary


def _encode_prompts(folder: Path, prompts: list[str], settings: GenerateSettings, device) -> list[list[TextContext]]:
    """Encode each prompt. Return [its context, the context of the negative prompt] for each."""
    encoder = GemmaTextEncoder.load(resolve(settings.text_encoder), dtype=torch.float32, device=device)
    conditioner = weights.load(folder, device=device, components=["text_conditioner"]).text_conditioner.eval()
    contexts = []
    with torch.no_grad():
        for prompt in prompts:
            # Encode both prompts in one batch, so that they have the same length.
            states, mask = encoder.encode([prompt, settings.negative_prompt])
            if not settings.negative_prompt:
                mask[1] = False  # only the connector's learned registers remain, as after caption dropout
            video, audio, _ = conditioner.connect(*conditioner.project(states, mask), mask)
            contexts.append([TextContext(video[n : n + 1], audio[n : n + 1]) for n in range(2)])
    del encoder
    gc.collect()
    return contexts


def _sample(
    model: LTX2, contexts: list[TextContext], settings: GenerateSettings, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Sample and decode one clip. Return frames uint8 (F, H, W, 3), and sound float32 (2, N) of the same duration."""
    shape = settings.shape
    f, h, w = shape.latent_shape
    transformer = model.transformer.config
    video, audio = sample(
        model.transformer,
        video=SampleStream(video_positions(f, h, w, shape.fps, device=device), transformer.in_channels),
        audio=SampleStream(audio_positions(shape.audio_tokens, device=device), transformer.audio_in_channels),
        context=contexts[0],
        negative=contexts[1],
        schedule=inference_schedule(settings.steps),
        guidance=Guidance(_scales(settings.video), _scales(settings.audio), settings.stg_blocks),
        generator=torch.Generator().manual_seed(seed),
    )
    assert video is not None
    assert audio is not None
    config = model.audio_vae.config
    with torch.no_grad():
        pixels = model.video_vae.decode(unpatchify_video(video, f, h, w))
        mel = model.audio_vae.decode(unpatchify_audio(audio, config.latent_channels, config.latent_bins))
        waveform = model.vocoder(mel)
    return _to_frames(pixels), _cut_or_pad(waveform[0], round(shape.duration_s * model.vocoder.sample_rate))


def _scales(given: ScaleSettings) -> GuidanceScales:
    """Convert the settings of one stream (video or audio) to the model's guidance scales."""
    return GuidanceScales(given.text, given.stg, given.modality, given.rescale)


def _to_frames(pixels_bcfhw: Tensor) -> np.ndarray:
    """Convert the first clip of a batch, pixels in [-1, 1], to frames uint8 (F, H, W, 3)."""
    scaled = (pixels_bcfhw[0].float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def _cut_or_pad(waveform: Tensor, samples: int) -> np.ndarray:
    """Cut sound (2, N) to `samples`, or pad it with silence: audio latents do not end exactly with the last frame."""
    sound = waveform.float().clamp(-1, 1)[:, :samples]
    return torch.nn.functional.pad(sound, (0, samples - sound.shape[1])).cpu().numpy()


def _device(name: str) -> torch.device:
    """Return the device of the setting `auto`, `cpu` or `cuda`; raise ValueError for `cuda` without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("generate.device: cuda, but this machine has no GPU; use cpu or auto")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def _run_key(folder: Path, settings: GenerateSettings) -> str:
    """Return a hash of what all samples depend on: the settings and the fingerprints of the components."""
    parts = [weights.fingerprint(folder / f"{part}.safetensors") for part in COMPONENTS]
    return hashlib.sha256(json.dumps([settings.model_dump(mode="json"), parts]).encode()).hexdigest()


def _made_with(path: Path) -> list[str] | None:
    """Return [run key, prompt] of the sample at `path`; None if its `.json` file, which is written last, is missing."""
    record = path.with_suffix(".json")
    return json.loads(record.read_text())["made_with"] if record.is_file() and path.is_file() else None


def _yaml(params: dict) -> str:
    import yaml

    return yaml.safe_dump(params, sort_keys=False)
