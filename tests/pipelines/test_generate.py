import json

import av
import numpy as np
import pytest

import model
from data_prep.loading.buckets import Bucket
from model import weights
from pipelines.generate import generate, read_prompts
from pipelines.settings import GenerateSettings, TrackingSettings

PROMPTS = ["A red ball bounces twice and knocks.", "A person says: “hello there”."]
SETTINGS = GenerateSettings(shape=Bucket(frames=17, height=64, width=96), steps=2, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "weights"
    weights.save(model.build("tiny"), folder, layout="kinotone")
    return folder.parent


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("samples")
    summary = generate(checkpoint, PROMPTS, SETTINGS, output, TrackingSettings())
    return output, summary


def test_samples_play_as_h264_with_stereo_aac_of_one_length(made):
    output, summary = made
    assert [sample["prompt"] for sample in summary["samples"]] == PROMPTS
    for sample in summary["samples"]:
        with av.open(str(output / sample["file"])) as source:
            video, audio = source.streams.video[0], source.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, audio.codec_context.channels) == (96, 64, 2)
            seconds = [float((stream.duration or 0) * (stream.time_base or 0)) for stream in (video, audio)]
            assert min(seconds) > 0.5
            assert abs(seconds[0] - seconds[1]) <= 0.040
            assert sum(1 for _ in source.decode(video)) == 17


def test_pictures_stand_beside_the_samples(made):
    output, _ = made
    for n in range(len(PROMPTS)):
        assert (output / f"{n:03d}.png").read_bytes()[:4] == b"\x89PNG"
        assert (output / f"{n:03d}.spectrogram.png").read_bytes()[:4] == b"\x89PNG"


def test_a_finished_run_makes_nothing_again_and_a_lost_sample_comes_back_the_same(checkpoint, made):
    output, _ = made
    first = {path.name: path.read_bytes() for path in output.glob("*.mp4")}
    assert generate(checkpoint, PROMPTS, SETTINGS, output, TrackingSettings())["made_now"] == 0
    (output / "001.mp4").unlink()
    assert generate(checkpoint, PROMPTS, SETTINGS, output, TrackingSettings())["made_now"] == 1
    assert {path.name: path.read_bytes() for path in output.glob("*.mp4")} == first


def test_prompt_and_seed_change_the_sample(made, checkpoint, tmp_path):
    output, _ = made
    other = SETTINGS.model_copy(update={"seed": 7})
    generate(checkpoint, PROMPTS[:1], other, tmp_path, TrackingSettings())
    assert (tmp_path / "000.mp4").read_bytes() != (output / "000.mp4").read_bytes()
    assert json.loads((tmp_path / "000.json").read_text())["seed"] == 7
    frames = []
    for path in (tmp_path / "000.mp4", output / "000.mp4"):
        with av.open(str(path)) as source:
            frames.append(np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]))
    assert np.abs(frames[0].astype(int) - frames[1].astype(int)).mean() > 1


def test_mistakes_name_the_file_and_the_mend(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt: holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="not there"):
        generate(tmp_path / "nowhere", PROMPTS, SETTINGS, tmp_path / "out", TrackingSettings())
    with pytest.raises(ValueError, match=r"transformer\.safetensors is missing"):
        generate(tmp_path, PROMPTS, SETTINGS, tmp_path / "out", TrackingSettings())
    assert not (tmp_path / "out").exists()
