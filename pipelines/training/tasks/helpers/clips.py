"""The kept clips of a curated set as samples: random crops of their pixels or sound.

Decoding takes longer than a step of a small model. Therefore decoded clips stay in memory, up to `cache_mb`; the other
clips are decoded on every use. The position of a crop is a function of (seed, clip id, step).
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from data_prep.dataset.index import read_manifest
from data_prep.dataset.shards import read_member
from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.bucket_frames import bucket_frames
from data_prep.loading.buckets import Bucket, choose
from data_prep.loading.loader import Batch
from data_prep.media import decode
from pipelines.training.tasks.base import Dataset
from pipelines.training.tasks.helpers.random_draws import generator

log = logging.getLogger("kinotone.training")

T = TypeVar("T")


@dataclass(frozen=True)
class PixelBatch(Batch):
    """A batch of pictures.

    Attributes:
        pixels: (B, 3, F, H, W) float32 in [−1, 1].
    """

    pixels: torch.Tensor


@dataclass(frozen=True)
class SoundBatch(Batch):
    """A batch of sound.

    Attributes:
        mel: (B, 2, T, 64) natural-log mel, 100 frames/s.
        waveform: (B, 2, T · rate / 100), the same time span.
    """

    mel: torch.Tensor
    waveform: torch.Tensor


@dataclass(frozen=True)
class CuratedClip:
    """A kept clip of a curated set, and where its media file is stored.

    Attributes:
        clip_id: its id in the manifest.
        shard: tar file with its media file, relative to the set.
        offset: where the media file begins in the shard, bytes.
        size: size of the media file, bytes.
        start_s: where the clip begins in the media file, seconds.
        end_s: where the clip ends in the media file, seconds.
        info: what the manifest says of the clip, such as width, height and frame rate.
    """

    clip_id: str
    shard: str
    offset: int
    size: int
    start_s: float
    end_s: float
    info: dict

    @property
    def duration_s(self) -> float:
        """Return the length of the clip, seconds."""
        return self.end_s - self.start_s


def kept_clips(root: str) -> list[CuratedClip]:
    """Return the kept clips of a curated set, ordered by id.

    Raises:
        ValueError: `root` is no curated set, or the set has no kept clip or no media.
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
    """A cache of row → value. A value that would exceed `limit_mb` (MiB) in total is not stored; none is removed."""

    def __init__(self, limit_mb: int) -> None:
        self._left = limit_mb << 20
        self._stored: dict[int, T] = {}

    def get(self, row: int, make: Callable[[int], tuple[T, int]]) -> T:
        """Return the stored value of a row, or make it. `make(row)` returns the value and its size in bytes."""
        if row in self._stored:
            return self._stored[row]
        value, size = make(row)
        if size <= self._left:
            self._left -= size
            self._stored[row] = value
        return value


class PictureClips(Dataset):
    """Crops of `frames` × `size` × `size` pixels from clips that are scaled to their buckets.

    The samples are one crop of each clip, and single frames of clips, which are `still_fraction` of all samples. A
    token is one latent of a crop. Clips that fit no bucket, or one smaller than a crop, are counted in `skipped`.

    Args:
        root: the curated set.
        buckets: sizes that the clips are scaled to, as encode does it.
        frames: number of frames of a crop, 1 + a multiple of 8.
        size: height and width of a crop, pixels.
        seed: of the run.
        cache_mb: size of the cache of decoded clips, MiB.
        still_fraction: share of the samples that are single frames, in [0, 1).

    Raises:
        ValueError: no clip can be used.
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

    def clip_frames(self, row: int) -> torch.Tensor:
        """Return a complete clip, scaled and cut to its bucket as encode does it: (F, H, W, 3) uint8."""
        return self._cache.get(row, self._decode)

    def _decode(self, row: int) -> tuple[torch.Tensor, int]:
        """Read and decode a clip; return its frames and their size in bytes."""
        clip, bucket = self.clips[row], self.chosen[row]
        data = read_member(self.root, clip.shard, clip.offset, clip.size)
        pixels = torch.from_numpy(bucket_frames(data, clip.start_s, bucket, clip.info["width"], clip.info["height"]))
        return pixels, pixels.nbytes

    def batch(self, micro: MicroBatch, step: int) -> PixelBatch:
        """Return random crops of the clips of a micro-batch."""
        crops, ids = [], []
        for row in micro.rows:
            # The rows after those of the clips are stills: one of each clip, then a second one of each, …
            turn, clip = divmod(row, len(self.clips))
            frames = 1 if turn else self.frames
            ids.append(self.clips[clip].clip_id + (f"/still{turn}" if turn else ""))
            pixels = self.clip_frames(clip)
            draw = generator(self.seed, f"{ids[-1]}/crop", step)
            spare = (len(pixels) - frames, pixels.shape[1] - self.size, pixels.shape[2] - self.size)
            t, y, x = (int(torch.randint(n + 1, (), generator=draw)) for n in spare)
            crops.append(pixels[t : t + frames, y : y + self.size, x : x + self.size])
        return PixelBatch(tuple(ids), torch.tensor(micro.weights), as_pixels(torch.stack(crops)))


def as_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Convert (B, F, H, W, 3) uint8 to (B, 3, F, H, W) float32 in [−1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class SoundClips(Dataset):
    """Crops of `mel_frames` log-mel frames with their waveform. Shorter clips are counted in `skipped`.

    Args:
        root: the curated set.
        mel_frames: length of a crop, 100 frames/s.
        sample_rate: of the waveform, Hz.
        seed: of the run.
        cache_mb: size of the cache of decoded clips, MiB.

    Raises:
        ValueError: no clip is long enough.
    """

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

    def clip_sound(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-mel (2, T, 64) and waveform (2, N) of a complete clip."""
        return self._cache.get(row, self._decode)

    def _decode(self, row: int) -> tuple[tuple[torch.Tensor, torch.Tensor], int]:
        """Read and decode a clip; return (log-mel, waveform) and their size in bytes."""
        clip = self.clips[row]
        data = read_member(self.root, clip.shard, clip.offset, clip.size)
        waveform = decode.decode_audio(data, clip.start_s, clip.end_s, self.sample_rate, 2)
        at_mel_rate = decode.resample(waveform, self.sample_rate, self._mel.config.sample_rate)
        mel = self._mel(torch.from_numpy(at_mel_rate)[None])[0]
        return (mel, torch.from_numpy(waveform)), mel.nbytes + waveform.nbytes

    def batch(self, micro: MicroBatch, step: int) -> SoundBatch:
        """Return random crops of the clips of a micro-batch, of mel and waveform at the same time span."""
        hop = round(self.sample_rate / self.mel_rate)
        mels, waveforms = [], []
        for row in micro.rows:
            mel, waveform = self.clip_sound(row)
            draw = generator(self.seed, f"{self.clips[row].clip_id}/crop", step)
            last = min(mel.shape[1], waveform.shape[1] // hop) - self.mel_frames
            t = int(torch.randint(max(0, last) + 1, (), generator=draw))
            mels.append(mel[:, t : t + self.mel_frames])
            waveforms.append(waveform[:, t * hop : (t + self.mel_frames) * hop])
        ids = tuple(self.clips[row].clip_id for row in micro.rows)
        return SoundBatch(ids, torch.tensor(micro.weights), torch.stack(mels), torch.stack(waveforms))


def _counts(skipped: dict[str, int]) -> str:
    """Return the counts as text for an error message, such as "3 too short, 1 too small"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
