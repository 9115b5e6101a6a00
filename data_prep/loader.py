"""Encoded samples into batches: byte ranges out of tar shards, read ahead by one thread.

A sample is one safetensors file inside a shard. Its latents have the shape of its bucket, so a batch's stack without
padding; its text features have as many tokens as its caption and are padded on the left, as the text encoder pads, to
a multiple of the connectors' registers.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch
from safetensors.torch import load as load_tensors

from data_prep import storage
from data_prep.index import read_index

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """A homogeneous batch of B samples; what kinds of tensors it holds, its subclasses say.

    Attributes:
        ids: the clips' ids.
        weights: (B,) loss weights, 0 for a repeat.
    """

    ids: tuple[str, ...]
    weights: torch.Tensor

    def to(self, device: torch.device | str) -> Self:
        """On a device; a copy from pinned memory does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """In page-locked memory, from which a GPU copies without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)})


@dataclass(frozen=True)
class LatentBatch(Batch):
    """Latents of both streams.

    Attributes:
        video_latent: (B, C, f, h, w), normalised.
        audio_latent: (B, 8, t, 16), normalised.
        fps: (B,) frames per second.
    """

    video_latent: torch.Tensor
    audio_latent: torch.Tensor
    fps: torch.Tensor


@dataclass(frozen=True)
class CaptionedBatch(LatentBatch):
    """Latents and the captions themselves."""

    captions: tuple[str, ...]


@dataclass(frozen=True)
class EncodedBatch(LatentBatch):
    """Latents and text features.

    Attributes:
        video_features: (B, S, D) projected text features, zero where padded.
        audio_features: (B, S, E), the same tensor unless the samples hold a second one.
        text_mask: (B, S) bool, True at the caption's tokens, which are last.
    """

    video_features: torch.Tensor
    audio_features: torch.Tensor
    text_mask: torch.Tensor


class EncodedSamples:
    """The samples of an encoded set, by row of its index.

    Raises:
        ValueError: the set has no index, or an index without samples.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self.index = read_index(root)
        if not self.index.num_rows:
            raise ValueError(f"the index of {root} has no samples; its report says which clips were dropped, and why")

    def read(self, row: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """One sample's tensors and its metadata (fps, caption, fingerprints of the VAEs and of the text projection)."""
        shard, offset, size = (self.index[name][row].as_py() for name in ("shard", "offset", "size"))
        data = storage.read_range(self.root, shard, offset, size)
        return load_tensors(data), metadata(data)

    def batch(self, rows: Sequence[int], weights: Sequence[float], registers: int) -> EncodedBatch:
        """The samples of `rows`, which are of one bucket; text padded to a multiple of `registers`.

        Raises:
            ValueError: a shard is missing or damaged.
        """
        samples = [self.read(row) for row in rows]
        tensors = [sample for sample, _ in samples]
        video_features, mask = pad_left([t["video_features"].float() for t in tensors], registers)
        audio_features = video_features
        if "audio_features" in tensors[0]:
            audio_features, _ = pad_left([t["audio_features"].float() for t in tensors], registers)
        return EncodedBatch(
            *self._latents(rows, weights, samples),
            video_features=video_features,
            audio_features=audio_features,
            text_mask=mask,
        )

    def captioned_batch(self, rows: Sequence[int], weights: Sequence[float]) -> CaptionedBatch:
        """The samples of `rows`, which are of one bucket, with their captions instead of the stored features.

        Raises:
            ValueError: a shard is missing or damaged, or a sample holds no caption.
        """
        samples = [self.read(row) for row in rows]
        captions = tuple(self.caption(row, about) for row, (_, about) in zip(rows, samples, strict=True))
        return CaptionedBatch(*self._latents(rows, weights, samples), captions=captions)

    def caption(self, row: int, about: dict[str, str]) -> str:
        """The caption in a sample's metadata; ValueError for a set that was encoded without."""
        if "caption" not in about:
            name = self.index["clip_id"][row].as_py()
            raise ValueError(
                f"{self.root}: sample {name} holds no caption (an older encode wrote it); encode the set again"
            )
        return about["caption"]

    def _latents(
        self,
        rows: Sequence[int],
        weights: Sequence[float],
        samples: Sequence[tuple[dict[str, torch.Tensor], dict[str, str]]],
    ) -> tuple[tuple[str, ...], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields of a `LatentBatch` in their order."""
        return (
            tuple(self.index["clip_id"][row].as_py() for row in rows),
            torch.tensor(weights, dtype=torch.float32),
            torch.stack([t["video_latent"] for t, _ in samples]).float(),
            torch.stack([t["audio_latent"] for t, _ in samples]).float(),
            torch.tensor([float(about["fps"]) for _, about in samples]),
        )


def metadata(data: bytes) -> dict[str, str]:
    """The `__metadata__` of a safetensors file: its first 8 bytes give the length of the JSON that follows."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def pad_left(features: Sequence[torch.Tensor], multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of (S_i, D) as (B, S, D), zeros on the left, S the least multiple that holds all; mask (B, S) bool."""
    longest = max(len(f) for f in features)
    length = max(1, -(-longest // multiple)) * multiple
    padded = features[0].new_zeros(len(features), length, features[0].shape[1])
    mask = torch.zeros(len(features), length, dtype=torch.bool)
    for row, feature in enumerate(features):
        if len(feature):
            padded[row, -len(feature) :] = feature
            mask[row, -len(feature) :] = True
    return padded, mask


class Prefetch(Generic[T]):
    """`make(n)` for n = start, start + 1, …, computed ahead by one thread; an iterator that never ends.

    An error in `make` is raised where its item is taken. Use as a context manager: leaving it ends the thread.

    Attributes:
        waited_s: seconds that taking has waited, since the start.
    """

    def __init__(self, make: Callable[[int], T], start: int, depth: int = 2) -> None:
        self._make, self._next = make, start
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self.waited_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        start = time.perf_counter()
        item, error = self._queue.get()
        self.waited_s += time.perf_counter() - start
        if error is not None:
            raise error
        return item  # type: ignore[return-value]

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                made: tuple[T | None, BaseException | None] = (self._make(self._next), None)
            except BaseException as error:
                made = (None, error)
            self._next += 1
            while not self._stop.is_set():
                try:
                    self._queue.put(made, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if made[1] is not None:
                return
