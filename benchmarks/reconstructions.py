"""Draw reconstructions of trained codecs beside their originals.

`python -m benchmarks.reconstructions --curated SET --video-vae FOLDER --audio-vae FOLDER --vocoder FOLDER --output DIR`

FOLDER is the output of a training run, for example one of tests/pipelines/training/test_overfit.py. Three pictures are
written, each with the originals in the upper row and the reconstructions in the lower row:

    reconstruction_video.png  first and ninth frame of four clips through the video VAE
    reconstruction_mel.png    log-mels of three clips through the audio VAE
    reconstruction_sound.png  spectrograms of three clips through mel and vocoder
"""

import argparse
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from data_prep.loading.buckets import Bucket
from model import weights
from model.audio_vae import AudioVAE
from model.mel import MelConfig, MelSpectrogram
from model.video_vae import VideoVAE
from model.vocoder import Vocoder
from pipelines.training.tasks.helpers.clips import PictureClips, SoundClips, as_pixels

matplotlib.use("Agg")
BUCKET = Bucket(frames=9, height=64, width=64)  # the bucket of the overfit tests


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 128 colours and print its size."""
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")


def video(curated: str, folder: Path, path: Path) -> None:
    """Draw frames of clips before and after the video VAE."""
    vae = cast(VideoVAE, weights.load_component(folder / "weights", "video_vae").eval())
    data = PictureClips(curated, [BUCKET], frames=BUCKET.frames, size=BUCKET.height, seed=0, cache_mb=0)
    rows = range(min(4, len(data.clips)))
    figure, axes = pyplot.subplots(2, 2 * len(rows), figsize=(12, 3.6), layout="constrained")
    for row in rows:
        pixels = as_pixels(data.clip_frames(row)[None])
        made = vae.decode(vae.encode(pixels)).clamp(-1, 1)
        psnr = 10 * torch.log10(4 / (made - pixels).square().mean()).item()
        for line, (name, film) in enumerate((("original", pixels), (f"{psnr:.1f} dB", made))):
            for axis, n in zip(axes[line, 2 * row : 2 * row + 2], (0, BUCKET.frames - 1), strict=True):
                axis.imshow(((film[0, :, n].permute(1, 2, 0) + 1) / 2).numpy())
                axis.set_axis_off()
            axes[line, 2 * row].set_title(name, loc="left", fontsize=10)
    save(figure, path)


def mels(curated: str, folder: Path, path: Path) -> None:
    """Draw log-mels of clips before and after the audio VAE."""
    vae = cast(AudioVAE, weights.load_component(folder / "weights", "audio_vae").eval())
    data = SoundClips(curated, 100, 48_000, seed=0, cache_mb=0)
    rows = _three_of(len(data.clips))
    figure, axes = pyplot.subplots(2, len(rows), figsize=(12, 5), layout="constrained")
    for column, row in enumerate(rows):
        mel = data.clip_sound(row)[0][None, :, :197]
        made = vae.decode(vae.encode(mel))
        error = (made - mel).abs().mean().item()
        for axis, image, name in (
            (axes[0, column], mel, "original log-mel"),
            (axes[1, column], made, f"through the VAE, mean error {error:.2f}"),
        ):
            axis.imshow(image[0].mean(0).T, origin="lower", aspect="auto", vmin=-11, vmax=2, cmap="inferno")
            axis.set_title(name, loc="left", fontsize=10)
            axis.set_axis_off()
    save(figure, path)


def sound(curated: str, folder: Path, path: Path) -> None:
    """Draw spectrograms of clips before and after mel and vocoder."""
    vocoder = cast(Vocoder, weights.load_component(folder / "weights", "vocoder").eval())
    rate = vocoder.config.sample_rate
    data = SoundClips(curated, 100, rate, seed=0, cache_mb=0)
    mel_of = MelSpectrogram(MelConfig(sample_rate=rate, hop_length=rate // 100))
    rows = _three_of(len(data.clips))
    figure, axes = pyplot.subplots(2, len(rows), figsize=(12, 5), layout="constrained")
    for column, row in enumerate(rows):
        mel, waveform = data.clip_sound(row)
        made = vocoder(mel[None, :, :200])[0]
        length = min(made.shape[-1], waveform.shape[-1])
        given = waveform[None, :, :length]
        error = (mel_of(made[None, :, :length]) - mel_of(given)).abs().mean().item()
        for axis, wave, name in (
            (axes[0, column], given[0], "original"),
            (axes[1, column], made, f"from its mel, error of the log-mel {error:.2f}"),
        ):
            axis.specgram(
                wave.mean(0).numpy() + 1e-7, NFFT=1024, noverlap=768, Fs=rate, cmap="inferno", vmin=-140, vmax=-40
            )
            axis.set_ylim(0, 8000)
            axis.set_title(name, loc="left", fontsize=10)
            axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("Hz")
    save(figure, path)


def _three_of(count: int) -> list[int]:
    """Three row numbers, evenly spaced over `count` rows."""
    return sorted(set(np.linspace(0, count - 1, 3).round().astype(int).tolist()))


@torch.inference_mode()
def main() -> None:
    """Parse the arguments and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--curated", "--video-vae", "--audio-vae", "--vocoder", "--output"):
        parser.add_argument(name, required=True, type=Path)
    asked = parser.parse_args()
    video(str(asked.curated), asked.video_vae, asked.output / "reconstruction_video.png")
    mels(str(asked.curated), asked.audio_vae, asked.output / "reconstruction_mel.png")
    sound(str(asked.curated), asked.vocoder, asked.output / "reconstruction_sound.png")


if __name__ == "__main__":
    main()
