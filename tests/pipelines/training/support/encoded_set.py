"""An encoded set, as encode writes it, and start weights for training tests."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

import model
from data_prep.dataset.index import INDEX_SCHEMA
from data_prep.loading.buckets import Bucket

BUCKET = Bucket(frames=9, height=64, width=64, fps=24)


def write_encoded_set(
    root: Path,
    samples: int = 6,
    spoilt: int | None = None,
    about: dict[str, str] | None = None,
    caption: bool = True,
) -> Path:
    """Write latents of one mean with a little noise; sample `spoilt` holds an infinity. Return `root`.

    Args:
        about: more metadata for every sample.
        caption: False for a set of an older version, whose samples hold no caption.
    """
    (root / "shards").mkdir(parents=True)
    g = torch.Generator().manual_seed(7)
    video_mean, audio_mean = torch.randn(32, 1, 1, 1, generator=g), torch.randn(8, 1, 16, generator=g)
    rows = []
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for n in range(samples):
            words = 3 + n % 4
            tensors = {
                "video_latent": (video_mean + 0.2 * torch.randn(32, *BUCKET.latent_shape, generator=g)).bfloat16(),
                "audio_latent": (audio_mean + 0.2 * torch.randn(8, BUCKET.audio_tokens, 16, generator=g)).bfloat16(),
                "video_features": torch.randn(words, 640, generator=g).bfloat16(),
            }
            if n == spoilt:
                tensors["video_latent"][0, 0, 0, 0] = float("inf")
            said = {"caption": f"sample {n}"} if caption else {}
            data = save(tensors, metadata={"fps": "24", **said, **(about or {})})
            entry = tarfile.TarInfo(f"clip{n}.safetensors")
            entry.size = len(data)
            # The data of a small member begin after its header of 512 bytes.
            offset = buffer.tell() + 512
            tar.addfile(entry, io.BytesIO(data))
            rows.append(
                {
                    "clip_id": f"clip{n}",
                    "shard": "shards/a.tar",
                    "offset": offset,
                    "size": len(data),
                    "bucket": BUCKET.key,
                    "video_tokens": BUCKET.video_tokens,
                    "audio_tokens": BUCKET.audio_tokens,
                    "text_tokens": words,
                }
            )
    (root / "shards/a.tar").write_bytes(buffer.getvalue())
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), root / "index.parquet")
    return root


def write_conditioner(folder: Path) -> Path:
    """Write a model folder with the text conditioner that "encode used", and return `folder`."""
    torch.manual_seed(3)
    model.weights.save(model.build("tiny", components=["text_conditioner"]), folder)
    return folder
