"""Kept clips of a curated set as samples of the tasks that train on pictures or sound: decoded, scaled and cropped.

Decoding costs more than a small model's step, so what was decoded is kept in memory until `cache_mb` is full; later
clips are decoded whenever they are wanted. The crop is a function of (seed, clip id, step).
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from data_prep.dataset.index import read_manifest
from data_prep.dataset.shards import read_member
from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.buckets import Bucket, choose
from data_prep.loading.loader import Batch
from data_prep.media import decode
from pipelines.training.tasks.base import Dataset, generator

log = logging.getLogger("kinotone.training")

T = TypeVar("T")


@dataclass(frozen=True)
class PixelBatch(Batch):
    """pixels: (B, 3, F, H, W) float32 in [−1, 1]."""

    pixels: torch.Tensor


@dataclass(frozen=True)
class SoundBatch(Batch):
    """mel: (B, 2, T, 64) natural-log mel at 100 frames/s; waveform: (B, 2, T · rate / 100); both of the same span."""

    mel: torch.Tensor
    waveform: torch.Tensor


@dataclass(frozen=True)
class CuratedClip:
    """Where a kept clip's media lies, its in and out points in it (seconds), and its picture's size and rate."""

    clip_id: str
    shard: str
    offset: int
    size: int
    start_s: float
    end_s: float
    info: dict

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def kept_clips(root: str) -> list[CuratedClip]:
    """The kept clips of a curated set, ordered by id.

    Raises:
        ValueError: no curated set there, or one that keeps no clip or holds no media.
    """
    table = read_manifest(root)
    names = ["clip_id", "verdict", "shard", "media_offset", "media_size", "info"]
    clips = []
    kept = 0
    for row in table.select(names).to_pylist():
        if row["verdict"] != "kept":
            continue
        kept += 1
        if not row["media_size"]:
            continue
        info = json.loads(row["info"])
        place = (row["shard"], row["media_offset"], row["media_size"])
        clips.append(CuratedClip(row["clip_id"], *place, info["in_s"], info["out_s"], info))
    if not kept:
        raise ValueError(f"{root} keeps no clip of {len(table)}; its report says why")
    if not clips:
        raise ValueError(f"{root} holds no media (an encoded set holds latents only); give the curated set")
    return sorted(clips, key=lambda clip: clip.clip_id)


class Cache(Generic[T]):
    """Values by row, kept until `limit_mb` is full."""

    def __init__(self, limit_mb: int) -> None:
        self._left = limit_mb << 20
        self._held: dict[int, T] = {}

    def get(self, row: int) -> T | None:
        return self._held.get(row)

    def put(self, row: int, value: T, size: int) -> None:
        if size <= self._left:
            self._left -= size
            self._held[row] = value


class PictureClips(Dataset):
    """Crops of `frames` × `size` × `size` pixels out of clips scaled to their buckets.

    A bucket of crops, one of each clip, and one of single frames out of them, as many as make `still_fraction` of all
    samples; a clip's token is one latent of its crop. Clips that fit no bucket are counted in `skipped`.
    """

    def __init__(
        self,
        root: str,
        buckets: Sequence[Bucket],
        frames: int,
        size: int,
        seed: int,
        cache_mb: int,
        still_fraction: float = 0.0,
    ) -> None:
        self.root, self.frames, self.size, self.seed = root, frames, size, seed
        self.clips: list[CuratedClip] = []
        self.chosen: list[Bucket] = []
        skipped: Counter[str] = Counter()
        for clip in kept_clips(root):
            bucket, reason = choose({**clip.info, "duration_s": clip.duration_s}, buckets)
            if bucket is None:
                skipped[reason] += 1
            elif bucket.frames < frames or min(bucket.height, bucket.width) < size:
                skipped["bucket smaller than the crop"] += 1
            else:
                self.clips.append(clip)
                self.chosen.append(bucket)
        self.skipped = dict(skipped)
        if not self.clips:
            raise ValueError(f"no clip of {root} fills a bucket ({_counts(self.skipped)}); add a smaller bucket")
        stills = round(len(self.clips) * still_fraction / (1 - still_fraction))
        kinds = {f"f{frames}_h{size}_w{size}": len(self.clips), f"f1_h{size}_w{size}": stills}
        self.buckets = [key for key, count in kinds.items() for _ in range(count)]
        spatial = (size // 32) ** 2
        self.tokens = dict(zip(kinds, ((1 + (frames - 1) // 8) * spatial, spatial), strict=True))
        self._cache: Cache[torch.Tensor] = Cache(cache_mb)

    def whole(self, row: int) -> torch.Tensor:
        """(F, H, W, 3) uint8: a clip scaled and cut to its bucket, as encode does it."""
        if (held := self._cache.get(row)) is not None:
            return held
        clip, bucket = self.clips[row], self.chosen[row]
        data = read_member(self.root, clip.shard, clip.offset, clip.size)
        # The picture's own size comes from the decoder, which turns it upright; the manifest's may not be turned.
        crop = bucket.crop(clip.info["width"], clip.info["height"])
        end_s = clip.start_s + bucket.duration_s
        size = (crop.height, crop.width)
        frames, _ = decode.decode_video(data, clip.start_s, end_s, fps=bucket.fps, max_frames=bucket.frames, size=size)
        frames = frames[:, crop.top : crop.top + bucket.height, crop.left : crop.left + bucket.width]
        if len(frames) < bucket.frames:  # a picture that ends a little before its sound holds its last frame
            assert len(frames)
            frames = np.concatenate([frames, np.repeat(frames[-1:], bucket.frames - len(frames), axis=0)])
        pixels = torch.from_numpy(np.ascontiguousarray(frames))
        self._cache.put(row, pixels, pixels.nbytes)
        return pixels

    def batch(self, micro: MicroBatch, step: int) -> PixelBatch:
        crops, ids = [], []
        for row in micro.rows:
            # Rows beyond the clips are stills: each clip once, then each a second time, …
            turn, clip = divmod(row, len(self.clips))
            frames = 1 if turn else self.frames
            ids.append(self.clips[clip].clip_id + (f"/still{turn}" if turn else ""))
            pixels = self.whole(clip)
            draw = generator(self.seed, f"{ids[-1]}/crop", step)
            spare = (len(pixels) - frames, pixels.shape[1] - self.size, pixels.shape[2] - self.size)
            t, y, x = (int(torch.randint(n + 1, (), generator=draw)) for n in spare)
            crops.append(pixels[t : t + frames, y : y + self.size, x : x + self.size])
        return PixelBatch(tuple(ids), torch.tensor(micro.weights), as_pixels(torch.stack(crops)))


def as_pixels(frames: torch.Tensor) -> torch.Tensor:
    """(B, F, H, W, 3) uint8 → (B, 3, F, H, W) float32 in [−1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class SoundClips(Dataset):
    """Crops of `mel_frames` log-mel frames with their waveform. Clips that are shorter are counted in `skipped`."""

    def __init__(self, root: str, mel_frames: int, sample_rate: int, seed: int, cache_mb: int) -> None:
        from model.mel import MelConfig, MelSpectrogram

        self.root, self.mel_frames, self.sample_rate, self.seed = root, mel_frames, sample_rate, seed
        self._mel = MelSpectrogram(MelConfig())
        self.mel_rate = self._mel.config.frames_per_second
        shortest_s = mel_frames / self.mel_rate
        clips = kept_clips(root)
        self.clips = [clip for clip in clips if clip.duration_s >= shortest_s]
        self.skipped = {"too short": len(clips) - len(self.clips)} if len(self.clips) < len(clips) else {}
        if not self.clips:
            raise ValueError(f"no clip of {root} is as long as a crop of {shortest_s} s; make the crop shorter")
        key = f"m{mel_frames}"
        self.buckets = [key] * len(self.clips)
        self.tokens = {key: -(-mel_frames // 4)}
        self._cache: Cache[tuple[torch.Tensor, torch.Tensor]] = Cache(cache_mb)

    def whole(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(2, T, 64) log-mel and (2, N) waveform of a whole clip."""
        if (held := self._cache.get(row)) is not None:
            return held
        clip = self.clips[row]
        data = read_member(self.root, clip.shard, clip.offset, clip.size)
        waveform = decode.decode_audio(data, clip.start_s, clip.end_s, self.sample_rate, 2)
        at_mel_rate = decode.resample(waveform, self.sample_rate, self._mel.config.sample_rate)
        mel = self._mel(torch.from_numpy(at_mel_rate)[None])[0]
        pair = mel, torch.from_numpy(waveform)
        self._cache.put(row, pair, mel.nbytes + waveform.nbytes)
        return pair

    def batch(self, micro: MicroBatch, step: int) -> SoundBatch:
        hop = round(self.sample_rate / self.mel_rate)
        mels, waveforms = [], []
        for row in micro.rows:
            mel, waveform = self.whole(row)
            draw = generator(self.seed, f"{self.clips[row].clip_id}/crop", step)
            last = min(mel.shape[1], waveform.shape[1] // hop) - self.mel_frames
            t = int(torch.randint(max(0, last) + 1, (), generator=draw))
            mels.append(mel[:, t : t + self.mel_frames])
            waveforms.append(waveform[:, t * hop : (t + self.mel_frames) * hop])
        ids = tuple(self.clips[row].clip_id for row in micro.rows)
        return SoundBatch(ids, torch.tensor(micro.weights), torch.stack(mels), torch.stack(waveforms))


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
