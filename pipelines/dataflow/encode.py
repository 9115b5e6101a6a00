"""The encode stage: kept clips → video latents, audio latents and text features, one safetensors file per clip.

A clip is decoded to the shape of its bucket: from its start, at the bucket's frame rate and size, for the bucket's
duration. The rest of the clip is not used; `info["window_s"]` records what is used.

Clips of one segment that share a bucket run through the VAEs as one batch, but never together with clips of another
segment: the composition of a batch changes the last bits of its results, and the bytes of a segment must not depend on
other segments.
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
    """Identify the weights that clips are encoded with, for the settings and samples of the set.

    Returns:
        For each of `COMPONENTS`, the SHA-256 of its configuration and tensors, or "PRESET, untrained".

    Raises:
        ValueError: a weight file is missing; the message names the setting.
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
    """The callable of the encode stage. It loads the models, to the GPU if there is one; make one per worker.

    Args:
        settings: the buckets and the weights.

    Raises:
        ValueError: weights are missing, or the text encoder does not fit the text projection.
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
        # The models were trained in bfloat16, but on a CPU float32 is faster.
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
        """Encode the kept clips of captioned segments.

        Returns:
            The segments with `clip.sample` in place of `clip.media`; `clip.info` gains bucket, video_tokens,
            audio_tokens, text_tokens and window_s. A clip that fits no bucket is `dropped`; one that cannot be decoded
            is `failed`.
        """
        return [self._encode_segment(segment) for segment in segments]

    def _encode_segment(self, segment: Segment) -> Segment:
        """Encode the kept clips of a segment in batches of one bucket each. The order of the clips stays the same."""
        done: dict[str, Clip] = {}
        groups: dict[str, list[_DecodedClip]] = defaultdict(list)
        for clip in (clip for clip in segment.clips if clip.kept):
            start_s, end_s = span(clip)
            bucket, reason = choose({**clip.info, "duration_s": end_s - start_s}, self.settings.buckets)
            if bucket is None:
                done[clip.clip_id] = clip.dropped(f"bucket_{reason.replace(' ', '_')}")
                continue
            try:
                decoded = _DecodedClip(clip, bucket, *_decode(clip, bucket))
            except Exception as error:  # whatever the decoder raises, only this clip fails
                done[clip.clip_id] = clip.failed("encode", error)
                continue
            groups[bucket.key].append(decoded)
        for group in groups.values():
            for start in range(0, len(group), self.settings.batch):
                for clip in self._encode_batch(group[start : start + self.settings.batch]):
                    done[clip.clip_id] = clip
        return replace(segment, clips=[done.get(clip.clip_id, clip) for clip in segment.clips])

    def _encode_batch(self, batch: list["_DecodedClip"]) -> Iterator[Clip]:
        """Encode clips of one bucket as one batch. Yield each clip with its safetensors file in `sample`."""
        import torch

        bucket = batch[0].bucket
        with torch.inference_mode():
            frames = torch.from_numpy(np.stack([item.frames for item in batch])).to(self.device)
            pixels = frames.permute(0, 4, 1, 2, 3).to(self.dtype) / 127.5 - 1
            video = self.video_vae.encode(pixels)
            waveform = torch.from_numpy(np.stack([item.waveform for item in batch])).to(self.device)
            audio = self.audio_vae.encode(self.mel(waveform).to(self.dtype))
            states, mask = self.text_encoder.encode([item.caption for item in batch])
            video_text, audio_text = self.conditioner.project(states, mask)
        assert audio.shape[2] == bucket.audio_tokens, f"{audio.shape} for {bucket.key}"
        assert tuple(video.shape[2:]) == bucket.latent_shape, f"{video.shape} for {bucket.key}"
        for row, item in enumerate(batch):
            # Leave out the padding of this batch (on the left), so that a sample does not depend on its batch.
            tensors = {
                "video_latent": video[row],
                "audio_latent": audio[row],
                "video_features": video_text[row][mask[row]],
            }
            if audio_text is not video_text:
                tensors["audio_features"] = audio_text[row][mask[row]]
            metadata = {
                "fps": f"{bucket.fps:g}",
                "caption": item.caption,
                "video_vae": self.fingerprints["video_vae"],
                "audio_vae": self.fingerprints["audio_vae"],
                "text": self.fingerprints["text_conditioner"],
                "text_projection": self.projection,
                "text_encoder": self.settings.text_encoder,
            }
            info = item.clip.info | {
                "bucket": bucket.key,
                "video_tokens": bucket.video_tokens,
                "audio_tokens": bucket.audio_tokens,
                "text_tokens": int(mask[row].sum()),
                "window_s": [0.0, round(bucket.duration_s, 6)],
            }
            yield replace(item.clip, media=b"", sample=to_safetensors(tensors, metadata), info=info)


@dataclass(frozen=True)
class _DecodedClip:
    """A clip decoded to the shape of its bucket: frames (F, H, W, 3) uint8 and waveform (2, N) float32 at 16 kHz."""

    clip: Clip
    bucket: Bucket
    frames: np.ndarray
    waveform: np.ndarray

    @property
    def caption(self) -> str:
        """The text of the clip's caption; "" if it has none."""
        return str(self.clip.caption.get("text", ""))


def _decode(clip: Clip, bucket: Bucket) -> tuple[np.ndarray, np.ndarray]:
    """Decode the clip's first `bucket.duration_s` seconds at the bucket's frame rate and size.

    Returns:
        (frames (F, H, W, 3) uint8, waveform (2, N) float32 at 16 kHz, as long as the bucket's mel frames need).
    """
    from model.mel import MelConfig

    if not clip.media:
        raise ValueError("a kept clip without its media: encode a curated or captioned set, not an encoded one")
    start_s, _ = span(clip)
    frames = bucket_frames(clip.media, start_s, bucket, clip.info["width"], clip.info["height"])
    mel = MelConfig()
    samples = (bucket.mel_frames - 1) * mel.hop_length  # N hops give N + 1 frames, because the sound is padded
    waveform = decode_audio(clip.media, start_s, start_s + samples / mel.sample_rate, mel.sample_rate, 2)
    return frames, waveform


def to_safetensors(tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str]) -> bytes:
    """Convert tensors to bfloat16 and return them as a safetensors file. Equal content gives equal bytes.

    The library writes the metadata in a different order in every process; so this function writes the header itself.

    Args:
        tensors: tensors by name, of any floating dtype and on any device.
        metadata: text values by name.

    Returns:
        The bytes of the file.
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
