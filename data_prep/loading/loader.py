"""Read batches of encoded samples: byte ranges of tar shards, read by one thread before they are needed.

A sample is one safetensors file inside a shard. Its latents have the shape of its bucket, so they stack without
padding. Its text features have as many tokens as its caption; they are padded on the left, as the text encoder pads, to
a multiple of the connectors' registers. The stored bfloat16 bytes are read straight into the batch (in page-locked
memory if there is CUDA) and become float32 on the device.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import torch

from data_prep.dataset import storage
from data_prep.dataset.index import read_index

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """A batch of B samples of one shape. Subclasses add the tensors.

    Attributes:
        ids: ids of the clips.
        weights: (B,) loss weights, 0 for a repeat.
    """

    ids: tuple[str, ...]
    weights: torch.Tensor

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on a device. From page-locked memory the copy runs in the background."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return a copy of the batch in page-locked memory, from which a GPU copies in the background."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the batch with `change` applied to every tensor. A tensor that two fields share is changed once."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        changed = {id(tensor): change(tensor) for tensor in tensors.values()}
        return replace(self, **{name: changed[id(tensor)] for name, tensor in tensors.items()})


@dataclass(frozen=True)
class LatentBatch(Batch):
    """Latents of both streams in their stored type; `to` converts them to float32.

    Attributes:
        video_latent: (B, C, f, h, w) for f latent frames, normalised.
        audio_latent: (B, 8, t, 16) for t audio latents, normalised.
        fps: (B,) frames per second.
    """

    video_latent: torch.Tensor
    audio_latent: torch.Tensor
    fps: torch.Tensor

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on a device, in float32. From page-locked memory the copy runs in the background."""
        return super().to(device)._each(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


@dataclass(frozen=True)
class CaptionedBatch(LatentBatch):
    """Latents, and the caption of each sample as text."""

    captions: tuple[str, ...]


@dataclass(frozen=True)
class EncodedBatch(LatentBatch):
    """Latents and text features.

    Attributes:
        video_features: (B, S, D) projected text features, zero where padded.
        audio_features: (B, S, E); the same tensor as `video_features` unless the samples hold a second one.
        text_mask: (B, S) bool, True at the caption's tokens, which come last.
    """

    video_features: torch.Tensor
    audio_features: torch.Tensor
    text_mask: torch.Tensor


class EncodedSamples:
    """The samples of an encoded set, addressed by row of its index.

    Raises:
        ValueError: the set has no index, or an index without samples.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self.index = read_index(root)
        # From page-locked memory a GPU copies in the background.
        self._pin = torch.cuda.is_available()
        if not self.index.num_rows:
            raise ValueError(f"the index of {root} has no samples; its report says which clips were dropped, and why")

    def read(self, row: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Read the sample in a row of the index.

        Returns:
            Its tensors by name, and its metadata: fps, caption, fingerprints of the VAEs and of the text projection.
        """
        with self._open([row]) as (sample,):
            tensors = {name: torch.empty(e.shape, dtype=e.dtype) for name, e in sample.entries.items()}
            sample.fill({name: _bytes(tensor) for name, tensor in tensors.items()})
        return tensors, sample.metadata

    def batch(self, rows: Sequence[int], weights: Sequence[float], registers: int) -> EncodedBatch:
        """Read samples of one bucket with their text features.

        Args:
            rows: rows of the index.
            weights: loss weight of each.
            registers: the text is padded to a multiple of this number of tokens.

        Raises:
            ValueError: a shard is missing or damaged.
        """
        with self._open(rows) as samples:
            words = [sample.entries["video_features"].shape[0] for sample in samples]
            length = max(1, -(-max(words) // registers)) * registers
            made = self._stacked(samples, {"video_features": length, "audio_features": length})
            return EncodedBatch(
                *self._latents(weights, samples, made),
                video_features=made["video_features"],
                audio_features=made.get("audio_features", made["video_features"]),
                text_mask=torch.arange(length) >= length - torch.tensor(words)[:, None],
            )

    def captioned_batch(self, rows: Sequence[int], weights: Sequence[float]) -> CaptionedBatch:
        """Read samples of one bucket with their captions instead of the stored text features.

        Raises:
            ValueError: a shard is missing or damaged, or a sample holds no caption.
        """
        with self._open(rows) as samples:
            captions = tuple(self.caption(row, sample.metadata) for row, sample in zip(rows, samples, strict=True))
            return CaptionedBatch(*self._latents(weights, samples, self._stacked(samples, {})), captions=captions)

    def caption(self, row: int, about: dict[str, str]) -> str:
        """Return the caption in `about`, the metadata of the sample in a row of the index.

        Raises:
            ValueError: the set was encoded before samples held captions.
        """
        if "caption" not in about:
            name = self.index["clip_id"][row].as_py()
            raise ValueError(
                f"{self.root}: sample {name} holds no caption (an older encode wrote it); encode the set again"
            )
        return about["caption"]

    @contextmanager
    def _open(self, rows: Sequence[int]) -> Iterator[list["_Stored"]]:
        """Open the shards of some samples, read the samples' headers, and yield the samples, one for each row."""
        columns = [self.index[name] for name in ("clip_id", "shard", "offset", "size")]
        places = [tuple(column[row].as_py() for column in columns) for row in rows]
        with storage.open_ranges(self.root, [place[1:] for place in places]) as ranges:
            yield [_Stored(place[0], place[3], read) for place, read in zip(places, ranges, strict=True)]

    def _stacked(self, samples: Sequence["_Stored"], padded: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Read tensors of B samples into batch tensors of the stored type.

        Args:
            samples: of one bucket.
            padded: lengths by name of the tensors to pad; those that the samples do not have are left out.

        Returns:
            By name: "video_latent" and "audio_latent" (B, …), each padded tensor (B, length, D) with zeros in front.
        """
        first = samples[0].entries
        made, places = {}, {}
        for name in ("video_latent", "audio_latent", *(name for name in padded if name in first)):
            shape = (padded[name], *first[name].shape[1:]) if name in padded else first[name].shape
            made[name] = torch.empty(len(samples), *shape, dtype=first[name].dtype, pin_memory=self._pin)
            places[name] = _bytes(made[name])
        for row, sample in enumerate(samples):
            filled = {}
            for name, place in places.items():
                entry, each = sample.expect(name, first[name], free=name in padded), len(place) // len(samples)
                begin, end = (row + 1) * each - (entry.end - entry.start), (row + 1) * each
                made[name][row, : padded.get(name, 0) - entry.shape[0]] = 0
                filled[name] = place[begin:end]
            sample.fill(filled)
        return made

    def _latents(
        self, weights: Sequence[float], samples: Sequence["_Stored"], made: Mapping[str, torch.Tensor]
    ) -> tuple[tuple[str, ...], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the values of the fields of a `LatentBatch`, in the order of the fields."""
        return (
            tuple(sample.clip_id for sample in samples),
            torch.tensor(weights, dtype=torch.float32),
            made["video_latent"],
            made["audio_latent"],
            torch.tensor([float(sample.metadata["fps"]) for sample in samples]),
        )


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor; writing to it changes the tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data


class _Entry(NamedTuple):
    """A tensor in a safetensors file: its type, its shape, and the bytes where it begins and ends."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class _Stored:
    """A sample's safetensors file, whose tensors are read straight into their place in a batch.

    The safetensors library would read complete files by name, or copy each tensor twice when given bytes. The format:
    8 bytes with the length of a JSON header, the header with type, shape and byte range of each tensor, the tensors.

    Raises:
        ValueError: not a safetensors file of latents.
    """

    def __init__(self, clip_id: str, size: int, read_into: storage.ReadInto) -> None:
        self.clip_id, self._read_into = clip_id, read_into
        head = bytearray(min(size, _HEAD))
        read_into(0, [memoryview(head)])
        begin = 8 + int.from_bytes(head[:8], "little")
        if len(head) < begin <= size:
            head = bytearray(begin)
            read_into(0, [memoryview(head)])
        try:
            header = json.loads(head[8:begin])
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self.entries = {
                name: _Entry(_TYPES[e["dtype"]], tuple(e["shape"]), *(begin + n for n in e["data_offsets"]))
                for name, e in header.items()
            }
            assert all(begin <= e.start <= e.end <= size for e in self.entries.values())
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"sample {clip_id} is not a safetensors file of latents; encode the set again") from error

    def expect(self, name: str, like: _Entry, free: bool) -> _Entry:
        """Return the entry of tensor `name`. With `free`, its first dimension may differ from that of `like`.

        Raises:
            ValueError: there is no such tensor, or its type or shape is not that of `like`.
        """
        entry = self.entries.get(name)
        if entry is None or entry.dtype != like.dtype or entry.shape[free:] != like.shape[free:]:
            found = "no such tensor" if entry is None else f"{list(entry.shape)} {entry.dtype}"
            raise ValueError(
                f"sample {self.clip_id} holds {name} as {found}, another of its bucket as {list(like.shape)} "
                f"{like.dtype}; encode the set again"
            )
        return entry

    def fill(self, places: Mapping[str, memoryview]) -> None:
        """Read tensors into the memory in `places`, by name. Tensors that are adjacent in the file take one read."""
        run: list[memoryview] = []
        begin = end = 0
        for entry, place in sorted(((self.entries[name], place) for name, place in places.items()), key=_start):
            if entry.start != end:
                self._read_into(begin, run)
                run, begin = [], entry.start
            run.append(place)
            end = entry.end
        self._read_into(begin, run)


def _start(placed: tuple[_Entry, memoryview]) -> int:
    return placed[0].start


_HEAD = 4096  # bytes to read first: most headers fit
_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Prefetch(Generic[T]):
    """An endless iterator over `make(n)` for n = start, start + 1, …, computed ahead by one thread.

    If `make(n)` fails, its error is raised when item n is taken. Use the iterator as a context manager: leaving the
    block ends the thread.

    Attributes:
        waited_s: seconds that the consumer has waited for items, in total.
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
        """Compute items and put them in the queue, until the block is left or `make` fails."""
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
