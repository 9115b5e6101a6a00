"""Crops of a curated set's clips."""

import pytest
import torch

from data_prep.loading.batch_plan import MicroBatch
from data_prep.loading.buckets import Bucket
from pipelines.training.tasks.helpers.clips import PictureClips, SoundClips
from pipelines.training.tasks.helpers.errors import edge_error
from tests.pipelines.training.support.curated_set import write_curated_set


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Write two clips that fit the bucket, one that is too small, and one that was dropped."""
    sizes = [(192, 128), (96, 96), (192, 160), (192, 128)]
    return write_curated_set(tmp_path_factory.mktemp("curated"), sizes, dropped=3)


def test_crops_of_pictures(curated):
    data = PictureClips(curated, [Bucket()], frames=17, size=96, seed=0, cache_mb=64)
    assert [clip.clip_id for clip in data.clips] == ["clip0", "clip2"]
    assert data.skipped == {"too small": 1}
    assert data.clip_frames(0).shape == data.clip_frames(1).shape == (49, 128, 192, 3)
    batch = data.batch(MicroBatch((0, 1), (1.0, 1.0)), step=3)
    assert batch.pixels.shape == (2, 3, 17, 96, 96)
    assert batch.pixels.abs().max() <= 1
    assert torch.equal(batch.pixels[1], data.batch(MicroBatch((1,), (1.0,)), step=3).pixels[0])
    assert not torch.equal(batch.pixels, data.batch(MicroBatch((0, 1), (1.0, 1.0)), step=4).pixels)
    uncached = PictureClips(curated, [Bucket()], frames=17, size=96, seed=0, cache_mb=0)
    assert torch.equal(batch.pixels, uncached.batch(MicroBatch((0, 1), (1.0, 1.0)), step=3).pixels)


def test_stills_are_a_bucket_of_their_own(curated):
    data = PictureClips(curated, [Bucket()], frames=17, size=96, seed=0, cache_mb=64, still_fraction=0.6)
    assert data.buckets == ["f17_h96_w96"] * 2 + ["f1_h96_w96"] * 3
    assert data.tokens == {"f17_h96_w96": 27, "f1_h96_w96": 9}
    stills = data.batch(MicroBatch((2, 3, 4), (1.0, 1.0, 1.0)), step=3)
    assert stills.pixels.shape == (3, 3, 1, 96, 96)
    assert stills.ids == ("clip0/still1", "clip2/still1", "clip0/still2")
    assert not torch.equal(stills.pixels[0], stills.pixels[2])  # another draw
    assert edge_error(stills.pixels, stills.pixels.flip(4)).isfinite().all()


def test_crops_of_sound(curated):
    data = SoundClips(curated, mel_frames=41, sample_rate=24_000, seed=0, cache_mb=64)
    assert len(data.clips) == 3
    batch = data.batch(MicroBatch((0, 1, 2), (1.0, 1.0, 1.0)), step=1)
    assert batch.mel.shape == (3, 2, 41, 64)
    assert batch.waveform.shape == (3, 2, 41 * 240)
    # Mel and waveform have the same span and channels: sound on the left, silence on the right.
    assert batch.mel[:, 0].max() > batch.mel[:, 1].max() + 3
    assert batch.waveform[:, 0].abs().max() > 0.15
    assert batch.waveform[:, 1].abs().max() < 0.01
    with pytest.raises(ValueError, match="make the crop shorter"):
        SoundClips(curated, mel_frames=400, sample_rate=24_000, seed=0, cache_mb=0)
