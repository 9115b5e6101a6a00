"""Find near duplicates: clips of a set that look and sound the same, even in another codec and size.

Curation gives each kept clip two kinds of 64-bit fingerprint. A picture hash ("pHash", of up to three key frames) tells
which low frequencies of a 32 × 32 cosine transform are above their median. A sound hash (Haitsma and Kalker 2002) tells
where the difference of neighbouring frequency bands grows in time. Both must agree: the picture of a talking head or a
still camera is the same for minutes, while the sound of each clip differs. Where a CLIP model is given
(`appraisal.picture_quality`), its embedding also finds pictures that a crop, a border or a caption has changed so much
that the hashes differ.

The duplicates of a set are known only when the set is complete, and by then the verdicts are committed. So the verdicts
are not changed; the duplicates are written to a table of their own, `duplicates.parquet`, computed from the manifest.
Each stage that reads the set (caption, encode, rejudge) drops the duplicates in its own output, with the reason
`near_duplicate`. So every set has one verdict per clip, and no verdict is ever rewritten.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.fft import dctn, next_fast_len, rfft, rfftfreq

from data_prep.clip import Segment
from data_prep.dataset import layout, storage
from data_prep.media.thumbnails import Thumbnails

REASON = "near_duplicate"
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("duplicate_of", pa.string()),
        ("picture_bits", pa.int64()),  # number of bits in which the picture hashes differ
        ("picture_cosine", pa.float64()),  # cosine of the embeddings; null where a clip has none
        ("sound_bits", pa.int64()),  # number of bits in which the sound hashes differ
    ]
)
PICTURES = 3  # number of key frames of a clip that are hashed
BITS = 64  # of a hash
FLAT = 4.0  # a picture whose brightness (0 to 255) has a smaller standard deviation has no content
# Most bits that may differ. Unrelated hashes differ in 32 ± 4 bits, re-encoded pictures in 4, re-encoded sounds in 10.
PICTURE_BITS, SOUND_BITS = 6, 16
COSINE = 0.95  # least cosine of the embeddings of two pictures that count as the same
LENGTHS_S = 0.25  # the lengths of duplicates differ by at most this, seconds
_BLOCKS = 7  # two hashes that differ in at most 6 bits agree in one of 7 blocks
_SOUND_BANDS = np.geomspace(200.0, 4000.0, 10)  # edges of 9 bands, Hz


def picture_hash(means: np.ndarray) -> int | None:
    """Return the 64-bit hash of a picture, given as (32, 32) brightness from 0 to 255; None if it has no content."""
    if means.std() < FLAT:  # black pictures of different clips have the same hash
        return None
    low = np.asarray(dctn(means, norm="ortho"))[:8, :8].ravel()
    return _number(low > np.median(low[1:]))


def picture_hashes(thumbnails: Thumbnails, times_s: Sequence[float], within_s: float) -> list[int]:
    """Hash the first `PICTURES` key frames of a clip. If some of them have no content, hash the next ones instead.

    Args:
        thumbnails: decodes key frames of the video stream.
        times_s: times of the clip's key frames, seconds, ordered.
        within_s: how far a frame's time may be from the given one, seconds.

    Returns:
        At most `PICTURES` hashes; empty where no key frame has content.
    """
    found: list[int] = []
    for start in (0, PICTURES):  # the second round replaces frames without content
        if len(found) < PICTURES:
            seen = thumbnails.keys(times_s[start : start + PICTURES], within_s)
            found += [value for one in seen.values() if (value := picture_hash(one.means)) is not None]
    return found[:PICTURES]


def sound_hash(mono: np.ndarray, sample_rate: int) -> int:
    """Return the 64-bit hash of (N,) samples: how the energies of 9 bands change over 9 equal intervals of time."""
    bands = np.empty((9, 9))
    for row, part in enumerate(np.array_split(mono.astype(np.float32), 9)):
        size = next_fast_len(max(len(part), 64), real=True)
        spectrum = np.asarray(rfft(part, size), np.complex64)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        places = np.searchsorted(rfftfreq(size, 1 / sample_rate), _SOUND_BANDS)
        bands[row] = [power[low:high].sum() for low, high in pairwise(places)]
    steps = np.diff(np.log(bands + 1e-12 + 1e-6 * bands.max()), axis=1)
    return _number((steps[1:] > steps[:-1]).ravel())


def find(rows: Iterable[dict]) -> list[dict]:
    """Find the duplicates among kept clips.

    Of clips that are the same, the one with the most pixels stays; if equal, the first by id. Clips are compared only
    with clips that stay: else a chain of small differences would join clips that differ much.

    Args:
        rows: for each clip `clip_id`, `seconds`, `pixels`, `pictures` (hashes) and `sound` (a hash); for some also
            `embedding`, (D,) of length 1.

    Returns:
        A row of `SCHEMA` for each duplicate, ordered by clip id.
    """
    clips = sorted((row for row in rows if row["pictures"]), key=lambda row: (-row["pixels"], row["clip_id"]))
    cells = _Cells([clip.get("embedding") for clip in clips])
    blocks: dict[tuple[int, int], list[int]] = defaultdict(list)
    duplicates = []
    for number, clip in enumerate(clips):
        keys = {key for value in clip["pictures"] for key in _block_keys(value)}
        candidates = {other for key in keys for other in blocks.get(key, ())} | cells.alike(number)
        match = next((found for other in sorted(candidates) if (found := _same(clip, clips[other]))), None)
        if match is None:  # the clip stays, and later ones are compared with it
            cells.stays(number)
            for key in keys:
                blocks[key].append(number)
        else:
            duplicates.append(match)
    return sorted(duplicates, key=lambda row: row["clip_id"])


def write(root: str | Path, manifest: Iterable[pa.Table]) -> set[str]:
    """Find the duplicates of a set and write them to its `duplicates.parquet`.

    Args:
        root: folder or URI of the set.
        manifest: tables that together are the manifest of the set.

    Returns:
        The clip ids of the duplicates.
    """
    columns = ["clip_id", "verdict", "start_s", "end_s", "info"]
    rows = []
    for row in (row for table in manifest for row in table.select(columns).to_pylist()):
        info = json.loads(row["info"])
        if row["verdict"] == "kept" and "picture_hashes" in info:
            rows.append(
                {
                    "clip_id": row["clip_id"],
                    "seconds": row["end_s"] - row["start_s"],
                    "pixels": info["width"] * info["height"],
                    "pictures": [int(value, 16) for value in info["picture_hashes"]],
                    "sound": int(info["sound_hash"], 16),
                    "embedding": from_text(info["picture_embedding"]) if "picture_embedding" in info else None,
                }
            )
    found = find(rows)
    with storage.atomic_write(storage.at(root, layout.DUPLICATES)) as out:
        pq.write_table(pa.Table.from_pylist(found, schema=SCHEMA), out, compression="zstd")
    return {row["clip_id"] for row in found}


def read(root: str | Path) -> dict[str, str]:
    """Return the duplicates of a set: clip id → id of the clip that stays. Empty if the set has no such table."""
    try:
        data = storage.read(storage.at(root, layout.DUPLICATES))
    except FileNotFoundError:
        return {}
    table = pq.ParquetFile(io.BytesIO(data)).read(columns=["clip_id", "duplicate_of"])
    return dict(zip(table["clip_id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))


def without(segment: Segment, duplicates: dict[str, str]) -> Segment:
    """Drop the kept clips of a segment whose ids are in `duplicates`; change the segment in place and return it."""
    segment.clips = [
        clip.dropped(REASON) if clip.kept and clip.clip_id in duplicates else clip for clip in segment.clips
    ]
    return segment


def to_text(embedding: np.ndarray) -> str:
    """Return an embedding (D,) as base64 of its float16 values, to be stored in a clip's `info`."""
    return base64.b64encode(embedding.astype("<f2").tobytes()).decode()


def from_text(text: str) -> np.ndarray:
    """Return an embedding, (D,) float32, from the text that `to_text` made of it."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


def _same(one: dict, other: dict) -> dict | None:
    """Return the row of `SCHEMA` that says that `one` duplicates `other`; None if it does not."""
    if one["clip_id"] == other["clip_id"] or abs(one["seconds"] - other["seconds"]) > LENGTHS_S:
        return None
    sound = (one["sound"] ^ other["sound"]).bit_count()
    if sound > SOUND_BITS:
        return None
    fewer, more = sorted((one["pictures"], other["pictures"]), key=len)
    nearest = sorted(min((a ^ b).bit_count() for b in more) for a in fewer)
    middle = nearest[len(nearest) // 2]  # more than half of the pictures differ in at most so many bits
    mine, its = one.get("embedding"), other.get("embedding")
    cosine = None if mine is None or its is None else float(np.dot(mine, its))
    if middle > PICTURE_BITS and (cosine is None or cosine < COSINE):
        return None
    return {
        "clip_id": one["clip_id"],
        "duplicate_of": other["clip_id"],
        "picture_bits": middle,
        "picture_cosine": cosine,
        "sound_bits": sound,
    }


def _block_keys(value: int) -> list[tuple[int, int]]:
    """Return (block number, bits of the block) of a 64-bit hash, for each of 7 blocks; equal blocks give equal keys."""
    edges = [round(block * BITS / _BLOCKS) for block in range(_BLOCKS + 1)]
    return [(block, (value >> low) & ((1 << (high - low)) - 1)) for block, (low, high) in enumerate(pairwise(edges))]


class _Cells:
    """The embeddings of a set's clips, grouped by k-means, to find those near a given one without comparing all pairs.

    Only embeddings of one group ("cell") are compared (SemDeDup, Abbas et al. 2023). There are about √N cells for N
    embeddings. Methods take the clip's place in `embeddings`, which has None for a clip without an embedding.
    """

    def __init__(self, embeddings: Sequence[np.ndarray | None]) -> None:
        known = {number: vector for number, vector in enumerate(embeddings) if vector is not None}
        self.members: dict[int, list[int]] = defaultdict(list)
        self.rows = dict(zip(known, range(len(known)), strict=True))
        if known:
            from sklearn.cluster import MiniBatchKMeans  # takes a second; needed only where a CLIP model is given

            self.vectors = np.stack(list(known.values()))
            means = MiniBatchKMeans(round(len(known) ** 0.5), random_state=0)
            self.cells = means.fit_predict(self.vectors)

    def stays(self, number: int) -> None:
        """Register a clip that stays, so that `alike` finds it."""
        if number in self.rows:
            self.members[self.cells[self.rows[number]]].append(number)

    def alike(self, number: int) -> set[int]:
        """Return the clips that stay and whose embeddings have a cosine of at least `COSINE` with that of this clip."""
        if number not in self.rows:
            return set()
        row = self.rows[number]
        others = self.members[self.cells[row]]
        near = self.vectors[[self.rows[other] for other in others]] @ self.vectors[row] >= COSINE
        return {other for other, is_near in zip(others, near, strict=True) if is_near}


def _number(bits: np.ndarray) -> int:
    """Return the integer whose bits, from the highest on, are the values of (N,) bool."""
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
