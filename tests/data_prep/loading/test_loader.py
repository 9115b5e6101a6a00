"""Batches from real tar shards and their byte ranges."""

import io
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save

from data_prep.dataset.index import INDEX_SCHEMA
from data_prep.loading.loader import EncodedSamples, Prefetch


def sample(seed, words, separate_audio=False):
    g = torch.Generator().manual_seed(seed)
    tensors = {
        "video_latent": torch.randn(4, 3, 2, 2, generator=g, dtype=torch.bfloat16),
        "audio_latent": torch.randn(8, 5, 16, generator=g, dtype=torch.bfloat16),
        "video_features": torch.randn(words, 6, generator=g, dtype=torch.bfloat16),
    }
    if separate_audio:
        tensors["audio_features"] = torch.randn(words, 3, generator=g, dtype=torch.bfloat16)
    return tensors


def write_set(root, samples, fps=24.0, caption="said"):
    """Write a set of one shard, as encode writes it."""
    (root / "shards").mkdir(parents=True)
    rows = []
    with tarfile.open(root / "shards/a.tar", "w") as tar:
        for clip_id, tensors in samples.items():
            data = save(tensors, metadata={"fps": str(fps), "caption": caption})
            entry = tarfile.TarInfo(f"{clip_id}.safetensors")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(root / "shards/a.tar") as tar:
        for member in tar.getmembers():
            clip_id = member.name.split(".")[0]
            rows.append(
                {
                    "clip_id": clip_id,
                    "shard": "shards/a.tar",
                    "offset": member.offset_data,
                    "size": member.size,
                    "bucket": "f17_h64_w64_a5",
                    "video_tokens": 12,
                    "audio_tokens": 5,
                    "text_tokens": len(samples[clip_id]["video_features"]),
                }
            )
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), root / "index.parquet")


@pytest.mark.parametrize("separate_audio", [False, True])
def test_a_batch_is_what_the_shards_hold(tmp_path, separate_audio):
    samples = {"one": sample(1, 5, separate_audio), "two": sample(2, 9, separate_audio), "three": sample(3, 0)}
    write_set(tmp_path / "set", samples)
    data = EncodedSamples(tmp_path / "set")
    batch = data.batch([1, 0], [1.5, 0.0], registers=8)
    assert batch.ids == ("two", "one")
    assert batch.weights.tolist() == [1.5, 0.0]
    assert batch.fps.tolist() == [24.0, 24.0]
    for row, name in enumerate(batch.ids):
        assert torch.equal(batch.video_latent[row], samples[name]["video_latent"])
        assert torch.equal(batch.audio_latent[row], samples[name]["audio_latent"])
        words = len(samples[name]["video_features"])
        assert batch.text_mask[row].tolist() == [False] * (16 - words) + [True] * words
        assert torch.equal(batch.video_features[row, -words:], samples[name]["video_features"])
        assert not batch.video_features[row, :-words].any()
        if separate_audio:
            assert torch.equal(batch.audio_features[row, -words:], samples[name]["audio_features"])
    assert (batch.audio_features is batch.video_features) != separate_audio
    assert batch.video_latent.dtype == torch.bfloat16
    moved = batch.to("cpu")
    assert moved.ids == batch.ids
    assert moved.text_mask.dtype == torch.bool
    assert (moved.audio_features is moved.video_features) != separate_audio
    for name in ("video_latent", "audio_latent", "video_features", "audio_features"):
        assert torch.equal(getattr(moved, name), getattr(batch, name).float())


def test_a_caption_without_tokens_is_all_padding(tmp_path):
    write_set(tmp_path / "set", {"none": sample(3, 0)})
    batch = EncodedSamples(tmp_path / "set").batch([0], [1.0], registers=8)
    assert batch.video_features.shape == (1, 8, 6)
    assert not batch.video_features.any()
    assert not batch.text_mask.any()


def test_a_sample_is_what_safetensors_itself_reads(tmp_path):
    tensors = sample(5, 4, separate_audio=True) | {"sigma": torch.arange(3.0), "scale": torch.tensor(2.5)}
    # The long caption makes a header that exceeds the first read.
    write_set(tmp_path / "set", {"one": tensors}, fps=12.5, caption="a – b " * 2000)
    data = (tmp_path / "set/shards/a.tar").read_bytes()
    samples = EncodedSamples(tmp_path / "set")
    offset, size = (samples.index[name][0].as_py() for name in ("offset", "size"))
    found, about = samples.read(0)
    expected = load(data[offset : offset + size])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert about == {"fps": "12.5", "caption": "a – b " * 2000}


def test_a_set_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"index\.parquet is missing"):
        EncodedSamples(tmp_path)
    write_set(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="has no samples"):
        EncodedSamples(tmp_path / "empty")
    write_set(tmp_path / "cut", {"one": sample(1, 5)})
    shard = tmp_path / "cut/shards/a.tar"
    shard.write_bytes(shard.read_bytes()[:900])
    with pytest.raises(ValueError, match="damaged"):
        EncodedSamples(tmp_path / "cut").batch([0], [1.0], registers=8)
    shard.unlink()
    with pytest.raises(ValueError, match=r"a\.tar is missing"):
        EncodedSamples(tmp_path / "cut").batch([0], [1.0], registers=8)


def test_a_sample_that_is_none_or_of_another_shape_is_named(tmp_path):
    other = sample(2, 5) | {"video_latent": torch.zeros(4, 3, 2, 4, dtype=torch.bfloat16)}
    write_set(tmp_path / "mixed", {"one": sample(1, 5), "two": other})
    with pytest.raises(
        ValueError, match=r"sample two holds video_latent as \[4, 3, 2, 4\].*another of its bucket as \[4, 3, 2, 2\]"
    ):
        EncodedSamples(tmp_path / "mixed").batch([0, 1], [1.0, 1.0], registers=8)
    write_set(tmp_path / "odd", {"one": sample(1, 5)})
    shard = tmp_path / "odd/shards/a.tar"
    data = bytearray(shard.read_bytes())
    data[520:560] = bytes(40)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="sample one is not a safetensors file"):
        EncodedSamples(tmp_path / "odd").read(0)


def test_prefetch_keeps_the_order_and_reads_no_further_than_its_depth():
    made = []
    reached = threading.Event()

    def make(n):
        made.append(n)
        if len(made) == 3:
            reached.set()
        return n * n

    with Prefetch(make, start=4, depth=2) as items:
        assert reached.wait(10)
        assert next(items) == 16
        assert next(items) == 25
    assert made == list(range(4, 4 + len(made)))
    assert len(made) <= 5  # two taken, two in the queue, one being put
    assert "prefetch" not in [t.name for t in threading.enumerate()]


def test_an_error_is_raised_where_its_item_is_taken():
    def make(n):
        if n == 1:
            raise ValueError("shard 7 is missing")
        return n

    with Prefetch(make, start=0) as items:
        assert next(items) == 0
        with pytest.raises(ValueError, match="shard 7"):
            next(items)
