"""Find near duplicates: clips that look and sound the same, in any codec and size.

Each kept clip has two kinds of fingerprint, measured while it is curated: of its first key pictures (the signs of the
low frequencies of a 32 × 32 cosine transform, "pHash") and of its sound (Haitsma and Kalker 2002: whether the
difference of neighbouring bands grows). Both must agree: a talking head or a still camera gives the same picture for
minutes, while the sound of each clip differs. Where a CLIP model is given (`appraisal.picture_quality`), its embedding
also finds pictures that a crop, a border or a caption has changed so much that the hashes differ.

The duplicates of a set are known only once the set is complete, and by then each clip has its final verdict. So the
set keeps its verdicts and gets a table beside them, `duplicates.parquet`, which is a function of the manifest, as
`index.parquet` is. Each stage that reads the set (caption, encode, rejudge) drops the duplicates in its own output,
with the reason `near_duplicate`. So every set has one verdict per clip, and no verdict is ever rewritten.
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
        ("picture_bits", pa.int64()),  # in which the hashes differ
        ("picture_cosine", pa.float64()),  # of the embeddings; null where one has none
        ("sound_bits", pa.int64()),
    ]
)
PICTURES = 3  # key pictures of a clip that are hashed
BITS = 64
FLAT = 4.0  # standard deviation of the brightness, of 255
# Bits that may differ. Unrelated hashes differ in 32 ± 4; a re-encoding moves 4 of a picture's, 10 of a sound's.
PICTURE_BITS, SOUND_BITS = 6, 16
COSINE = 0.95  # of two embeddings; at least this for the same picture
LENGTHS_S = 0.25  # the lengths of duplicates differ by at most this, seconds
_BLOCKS = 7  # two hashes that differ in at most 6 bits agree in one of 7 blocks
_SOUND_BANDS = np.geomspace(200.0, 4000.0, 10)  # edges of 9 bands, Hz


def picture_hash(means: np.ndarray) -> int | None:
    """Hash (32, 32) brightness from 0 to 255 to 64 bits; return None for a picture without content."""
    if means.std() < FLAT:  # black pictures of different clips have the same hash
        return None
    low = np.asarray(dctn(means, norm="ortho"))[:8, :8].ravel()
    return _number(low > np.median(low[1:]))


def picture_hashes(thumbnails: Thumbnails, times_s: Sequence[float], within_s: float) -> list[int]:
    """Hash the first `PICTURES` key pictures; no other picture is decoded.

    Args:
        thumbnails: of the video stream.
        times_s: of the key pictures, seconds, ordered.
        within_s: how far a picture's time may be from the given one.

    Returns:
        At most `PICTURES` hashes; empty where no key picture has content.
    """
    found: list[int] = []
    for start in (0, PICTURES):  # the second round replaces pictures without content
        if len(found) < PICTURES:
            seen = thumbnails.keys(times_s[start : start + PICTURES], within_s)
            found += [value for one in seen.values() if (value := picture_hash(one.means)) is not None]
    return found[:PICTURES]


def sound_hash(mono: np.ndarray, sample_rate: int) -> int:
    """Hash (N,) samples to 64 bits: how the energies of 9 bands change over 9 equal stretches of time."""
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

    Of clips that are the same, the one with the most pixels stays, then the first by id. A clip is compared only with
    clips that stay, so that a chain of small differences does not join clips that differ much.

    Args:
        rows: `clip_id`, `seconds`, `pixels`, `pictures` (hashes) and `sound` (a hash) of each clip; of some also
            `embedding`, (D,) of length 1.

    Returns:
        Rows of `SCHEMA`, ordered by clip id.
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
    """Write `duplicates.parquet` of a set.

    Args:
        root: of the set.
        manifest: of the set, in parts.

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
    """Read the duplicates of a set: clip id → the id of the clip that stays. Empty for a set without a table."""
    try:
        data = storage.read(storage.at(root, layout.DUPLICATES))
    except FileNotFoundError:
        return {}
    table = pq.ParquetFile(io.BytesIO(data)).read(columns=["clip_id", "duplicate_of"])
    return dict(zip(table["clip_id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))


def without(segment: Segment, duplicates: dict[str, str]) -> Segment:
    """Drop the duplicates among a segment's clips, in place, and return the segment."""
    segment.clips = [
        clip.dropped(REASON) if clip.kept and clip.clip_id in duplicates else clip for clip in segment.clips
    ]
    return segment


def to_text(embedding: np.ndarray) -> str:
    """Encode an embedding (D,) as base64 of float16, to be stored in a clip's record."""
    return base64.b64encode(embedding.astype("<f2").tobytes()).decode()


def from_text(text: str) -> np.ndarray:
    """Decode an embedding to (D,) float32; the inverse of `to_text`."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


def _same(one: dict, other: dict) -> dict | None:
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
    edges = [round(block * BITS / _BLOCKS) for block in range(_BLOCKS + 1)]
    return [(block, (value >> low) & ((1 << (high - low)) - 1)) for block, (low, high) in enumerate(pairwise(edges))]


class _Cells:
    """Embeddings in k-means cells; only those in one cell are compared (SemDeDup, Abbas et al. 2023).

    The number of cells is the square root of the number of embeddings.
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
        if number in self.rows:
            self.members[self.cells[self.rows[number]]].append(number)

    def alike(self, number: int) -> set[int]:
        """Return the clips that stay and have the same picture by their embedding."""
        if number not in self.rows:
            return set()
        row = self.rows[number]
        others = self.members[self.cells[row]]
        near = self.vectors[[self.rows[other] for other in others]] @ self.vectors[row] >= COSINE
        return {other for other, is_near in zip(others, near, strict=True) if is_near}


def _number(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
