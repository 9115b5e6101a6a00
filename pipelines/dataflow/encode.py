"""Kept clips → training samples: video latents, audio latents, text features; one safetensors file per clip.

A clip is brought to its bucket: from its start, at the bucket's rate and size, for the bucket's length; the rest of it
is not used (`info["window_s"]` says what is). Clips of one segment that share a bucket run through the VAEs together,
and never with those of another segment: a batch's make-up moves the last bits of its results, and a segment's bytes
must not depend on its neighbours.
"""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.clip import Clip, Segment
from data_prep.loading.bucket_frames import bucket_frames
from data_prep.loading.buckets import Bucket, choose
from data_prep.media.decode import decode_audio, span
from data_prep.packaged_weights import resolve
from pipelines.settings import COMPONENTS, EncodeSettings

if TYPE_CHECKING:
    import torch


def fingerprints(settings: EncodeSettings) -> dict[str, str]:
    """What the weights are: part → SHA-256 of its configuration and tensors; the preset's name if untrained.

    Raises:
        ValueError: weights are not there; says which setting.
    """
    from model import weights
    from model.presets import preset

    found = {}
    for part in COMPONENTS:
        folder = getattr(settings, part)
        if not folder:
            preset(settings.preset)
            found[part] = f"{settings.preset}, untrained"
            continue
        try:
            found[part] = weights.fingerprint(folder, part)
        except (OSError, ValueError) as error:
            raise ValueError(f"encode.{part}: {error}") from error
    return found


class Encoder:
    """The encode stage. Holds its models, on the GPU where there is one; make one per worker.

    Raises:
        ValueError: weights are missing, or the text encoder is not the one that the projection was made for.
    """

    def __init__(self, settings: EncodeSettings) -> None:
        import torch

        import model
        from model import weights
        from model.audio_vae import AudioVAE
        from model.mel import MelSpectrogram
        from model.text_conditioner import TextConditioner
        from model.text_encoder import GemmaTextEncoder
        from model.video_vae import VideoVAE

        self.settings = settings
        self.fingerprints = fingerprints(settings)
        given = settings.text_conditioner
        self.projection = weights.projection_fingerprint(given) if given else self.fingerprints["text_conditioner"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # On a CPU bfloat16 is slower than float32; on a GPU it is what the models were trained in.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32

        def load(part: str) -> torch.nn.Module:
            if part in settings.untrained:
                torch.manual_seed(0)
                return model.build(settings.preset, self.device, self.dtype, [part]).components[part].eval()
            return weights.load_component(getattr(settings, part), part, self.device, self.dtype).eval()

        video_vae, audio_vae, conditioner = (load(part) for part in COMPONENTS)
        assert isinstance(video_vae, VideoVAE)
        assert isinstance(audio_vae, AudioVAE)
        assert isinstance(conditioner, TextConditioner)
        self.video_vae, self.audio_vae, self.conditioner = video_vae, audio_vae, conditioner
        self.mel = MelSpectrogram().to(self.device)
        self.text_encoder = GemmaTextEncoder.load(
            resolve(settings.text_encoder), settings.max_text_tokens, self.dtype, self.device
        )
        states, width = conditioner.config.num_states, conditioner.config.hidden_size
        if (self.text_encoder.num_states, self.text_encoder.hidden_size) != (states, width):
            raise ValueError(
                f"encode.text_encoder {settings.text_encoder!r} gives {self.text_encoder.num_states} states of width "
                f"{self.text_encoder.hidden_size}; {settings.text_conditioner} was made for {states} of width {width}"
            )

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Segments with captioned kept clips → the same with `clip.sample`, and without `clip.media`.

        A clip that fits no bucket is `dropped`, one that cannot be decoded is `failed`; `info` gains bucket,
        video_tokens, audio_tokens, text_tokens and window_s.
        """
        return [self._segment(segment) for segment in segments]

    def _segment(self, segment: Segment) -> Segment:
        done: dict[str, Clip] = {}
        groups: dict[str, list[_Ready]] = defaultdict(list)
        for clip in (clip for clip in segment.clips if clip.kept):
            start_s, end_s = span(clip)
            bucket, reason = choose({**clip.info, "duration_s": end_s - start_s}, self.settings.buckets)
            if bucket is None:
                done[clip.clip_id] = clip.dropped(f"bucket_{reason.replace(' ', '_')}")
                continue
            try:
                ready = _Ready(clip, bucket, *_decode(clip, bucket))
            except Exception as error:  # whatever a file does to a decoder, it is this clip's verdict and no other's
                done[clip.clip_id] = clip.failed("encode", error)
                continue
            groups[bucket.key].append(ready)
        for group in groups.values():
            for start in range(0, len(group), self.settings.batch):
                for clip in self._encode(group[start : start + self.settings.batch]):
                    done[clip.clip_id] = clip
        return replace(segment, clips=[done.get(clip.clip_id, clip) for clip in segment.clips])

    def _encode(self, batch: list["_Ready"]) -> Iterator[Clip]:
        import torch

        bucket = batch[0].bucket
        with torch.inference_mode():
            frames = torch.from_numpy(np.stack([ready.frames for ready in batch])).to(self.device)
            pixels = frames.permute(0, 4, 1, 2, 3).to(self.dtype) / 127.5 - 1
            video = self.video_vae.encode(pixels)
            waveform = torch.from_numpy(np.stack([ready.waveform for ready in batch])).to(self.device)
            audio = self.audio_vae.encode(self.mel(waveform).to(self.dtype))
            states, mask = self.text_encoder.encode([ready.caption for ready in batch])
            video_text, audio_text = self.conditioner.project(states, mask)
        assert audio.shape[2] == bucket.audio_tokens, f"{audio.shape} for {bucket.key}"
        assert tuple(video.shape[2:]) == bucket.latent_shape, f"{video.shape} for {bucket.key}"
        for row, ready in enumerate(batch):
            # The samples hold no pads: those that this batch needed are on the left.
            tensors = {
                "video_latent": video[row],
                "audio_latent": audio[row],
                "video_features": video_text[row][mask[row]],
            }
            if audio_text is not video_text:
                tensors["audio_features"] = audio_text[row][mask[row]]
            about = {
                "fps": f"{bucket.fps:g}",
                "caption": ready.caption,
                "video_vae": self.fingerprints["video_vae"],
                "audio_vae": self.fingerprints["audio_vae"],
                "text": self.fingerprints["text_conditioner"],
                "text_projection": self.projection,
                "text_encoder": self.settings.text_encoder,
            }
            info = ready.clip.info | {
                "bucket": bucket.key,
                "video_tokens": bucket.video_tokens,
                "audio_tokens": bucket.audio_tokens,
                "text_tokens": int(mask[row].sum()),
                "window_s": [0.0, round(bucket.duration_s, 6)],
            }
            yield replace(ready.clip, media=b"", sample=to_safetensors(tensors, about), info=info)


@dataclass(frozen=True)
class _Ready:
    """A decoded clip: frames (F, H, W, 3) uint8 and waveform (2, N) float32 at 16 kHz, of its bucket's size."""

    clip: Clip
    bucket: Bucket
    frames: np.ndarray
    waveform: np.ndarray

    @property
    def caption(self) -> str:
        return str(self.clip.caption.get("text", ""))


def _decode(clip: Clip, bucket: Bucket) -> tuple[np.ndarray, np.ndarray]:
    """The clip's first `bucket.duration_s` seconds at the bucket's rate and size, with the sound of its mel frames."""
    from model.mel import MelConfig

    if not clip.media:
        raise ValueError("a kept clip without its media: encode a curated or captioned set, not an encoded one")
    start_s, _ = span(clip)
    frames = bucket_frames(clip.media, start_s, bucket, clip.info["width"], clip.info["height"])
    mel = MelConfig()
    samples = (bucket.mel_frames - 1) * mel.hop_length  # a centred transform gives one frame more than hops
    waveform = decode_audio(clip.media, start_s, start_s + samples / mel.sample_rate, mel.sample_rate, 2)
    return frames, waveform


def to_safetensors(tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in bfloat16 whose bytes are a function of its content.

    The library's own writer puts the metadata in another order in every process; so its header is written anew.
    """
    import torch
    from safetensors.torch import save

    plain = save({name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()})
    (length,) = struct.unpack("<Q", plain[:8])
    header: dict[str, Any] = json.loads(plain[8 : 8 + length])
    header["__metadata__"] = dict(metadata)
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + plain[8 + length :]
