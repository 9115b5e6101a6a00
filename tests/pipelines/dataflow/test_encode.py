"""Encode makes latents of the bucket's shape from the start of a clip; other segments do not change the bytes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

from data_prep.clip import Clip, Segment
from data_prep.loading.buckets import Bucket
from data_prep.media.write_mp4 import write_mp4
from model import build, weights
from pipelines.dataflow.encode import COMPONENTS, Encoder, fingerprints, to_safetensors
from pipelines.settings import EncodeSettings
from tests.tiny_gemma import write_gemma

BUCKET = Bucket(frames=9, height=64, width=96, fps=24)


def _metadata(file: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    return json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset's encoders and projection as a model folder, and a random Gemma 3 of its shape."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("model")
    parts = ("video_vae", "audio_vae", "text_conditioner")
    weights.save(build("tiny", components=parts), root)
    write_gemma(root / "gemma")
    return root


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(_settings(folder))


def _settings(folder: Path, **other: str) -> EncodeSettings:
    named = dict.fromkeys(COMPONENTS, str(folder)) | {"text_encoder": str(folder / "gemma")} | other
    return EncodeSettings.model_validate({"buckets": [BUCKET], "batch": 2, **named})


def _clip(name: str, caption: str, tmp_path: Path, *, seconds: float = 0.5, size: tuple[int, int] = (72, 96)) -> Clip:
    rng = np.random.default_rng(len(caption))
    count = round(seconds * 24)
    frames = np.repeat(rng.integers(0, 255, (count, 1, 1, 3), dtype=np.uint8), size[0], axis=1).repeat(size[1], axis=2)
    sound = rng.normal(0, 0.1, (2, round(seconds * 16000))).astype(np.float32)
    path = tmp_path / f"{name}.mp4"
    write_mp4(path, frames, 24, sound, 16000)
    info = {"width": size[1], "height": size[0], "fps": 24.0, "in_s": 0.0, "out_s": seconds}
    return Clip(name, 3.0, 3.0 + seconds, media=path.read_bytes(), caption={"text": caption}, info=info)


def test_a_clip_becomes_latents_of_its_bucket_and_features_without_pads(encoder: Encoder, tmp_path: Path) -> None:
    short = _clip("a", "a ball bounces", tmp_path)
    long = _clip("b", "a ball bounces and someone speaks", tmp_path)
    (segment,) = encoder([Segment("s", "u", clips=[short, long])])
    first, second = segment.clips
    tensors, about = load_tensors(first.sample), _metadata(first.sample)
    channels = encoder.video_vae.config.latent_channels
    assert tensors["video_latent"].shape == (channels, 2, 2, 3)
    assert tensors["audio_latent"].shape == (8, BUCKET.audio_tokens, 16)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert about["caption"] == "a ball bounces"
    assert float(about["fps"]) == 24.0
    assert about["video_vae"] == weights.fingerprint(encoder.settings.video_vae, "video_vae")
    assert about["text_projection"] == weights.projection_fingerprint(encoder.settings.text_conditioner)
    assert first.media == b""
    assert first.info["bucket"] == BUCKET.key == "f9_h64_w96_a9"
    assert (first.info["text_tokens"], second.info["text_tokens"]) == (4, 7)
    assert tensors["video_features"].shape[0] == 4
    # The stored tensors equal those that the models compute for this clip alone.
    states, mask = encoder.text_encoder.encode(["a ball bounces"])
    alone, _ = encoder.conditioner.project(states, mask)
    torch.testing.assert_close(tensors["video_features"].float(), alone[0], rtol=2e-2, atol=2e-2)


def test_a_segments_bytes_do_not_depend_on_its_neighbours(encoder: Encoder, tmp_path: Path) -> None:
    one = Segment("one", "u", clips=[_clip("a", "a ball bounces", tmp_path), _clip("b", "someone speaks", tmp_path)])
    two = Segment("two", "v", clips=[_clip("c", "a ball and a ball and a ball", tmp_path)])
    together = encoder([one, two])[0]
    alone = encoder([one])[0]
    assert [clip.sample for clip in together.clips] == [clip.sample for clip in alone.clips]


def test_what_fits_no_bucket_or_cannot_be_decoded_has_its_verdict(encoder: Encoder, tmp_path: Path) -> None:
    good = _clip("a", "a ball", tmp_path)
    short = _clip("b", "a ball", tmp_path, seconds=0.25)
    small = _clip("c", "a ball", tmp_path, size=(32, 48))
    bad = replace(_clip("d", "a ball", tmp_path), media=b"no film at all")
    silent = Clip("e", 0, 1).dropped("silence")
    (segment,) = encoder([Segment("s", "u", clips=[bad, good, short, small, silent])])
    verdicts = {clip.clip_id: (clip.verdict, clip.reason) for clip in segment.clips}
    assert verdicts == {
        "d": ("failed", "encode"),
        "a": ("kept", ""),
        "b": ("dropped", "bucket_too_short"),
        "c": ("dropped", "bucket_too_small"),
        "e": ("dropped", "silence"),
    }
    assert not any(clip.sample for clip in segment.clips if not clip.kept)


def test_missing_weights_name_the_setting(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encode\.video_vae"):
        Encoder(EncodeSettings(video_vae=str(tmp_path)))
    with pytest.raises(ValueError, match=r"encode\.text_conditioner"):
        Encoder(_settings(folder, text_conditioner=str(tmp_path)))


def test_a_part_without_weights_is_the_presets_untrained_one_and_says_so(folder: Path) -> None:
    settings = EncodeSettings()
    assert settings.untrained == ["video_vae", "audio_vae", "text_conditioner"]
    assert set(fingerprints(settings).values()) == {"tiny, untrained"}
    assert _settings(folder).untrained == []
    with pytest.raises(ValueError, match="unknown preset 'tinny'"):
        fingerprints(EncodeSettings(preset="tinny"))


_SAVE = """
import sys, torch
from pipelines.dataflow.encode import to_safetensors
about = {"fps": "24", "caption": "a – b", "video_vae": "1", "audio_vae": "2", "text": "3"}
sys.stdout.buffer.write(to_safetensors({"b": torch.arange(3.0), "a": torch.ones(2, 2)}, about))
"""


def test_a_sample_file_has_the_same_bytes_in_every_process() -> None:
    files = {
        subprocess.run(
            [sys.executable, "-c", _SAVE], capture_output=True, check=True, cwd=Path(__file__).parents[3]
        ).stdout
        for _ in range(2)
    }
    (data,) = files
    assert _metadata(data)["caption"] == "a – b"
    assert load_tensors(data)["b"].tolist() == [0, 1, 2]
    assert data == to_safetensors(load_tensors(data), _metadata(data))
