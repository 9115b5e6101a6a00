"""The scripts of examples/ run as their docstrings say, one after another, on one small corpus and one training run."""

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

import model
from captioning.settings import CaptionSettings
from data_prep.dataset.index import read_index, read_manifest
from data_prep.loading.buckets import Bucket
from data_prep.settings import SynthSettings
from data_prep.synthetic import generate as synthesise
from model import weights
from pipelines.dataflow.prepare import run_prepare
from pipelines.settings import EncodeSettings

ROOT = Path(__file__).parents[2]
SCRIPTS = ("curate_folder.py", "train_encoded.py", "sample_checkpoint.py")


def _run(script: str, *arguments: str | Path) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_are_short_and_show_their_command(script: str) -> None:
    text = (ROOT / "examples" / script).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"python examples/{script} " in text.split('"""')[1]


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The set that curate_folder.py makes of a small corpus, and what it prints."""
    folder = tmp_path_factory.mktemp("examples")
    settings = SynthSettings(clips=6, seconds_min=1.8, seconds_max=2.2, width=96, height=64, workers=1)
    clips = synthesise(settings, folder / "corpus") / "clips"
    return folder / "curated", _run("curate_folder.py", clips, folder / "curated")


@pytest.fixture(scope="module")
def trained(curated: tuple[Path, str]) -> tuple[Path, str]:
    """The run that train_encoded.py makes of the curated set, and what it prints."""
    folder = curated[0].parent
    weights.save(model.build("tiny"), folder / "weights", "kinotone")
    encode = EncodeSettings(
        buckets=[Bucket(frames=9, height=64, width=96, fps=24)],
        **dict.fromkeys(("video_vae", "audio_vae", "text_conditioner"), str(folder / "weights")),
    )
    settings = {"caption": CaptionSettings(), "encode": encode}
    run_prepare(("caption", "encode"), [str(curated[0])], folder / "encoded", settings)
    assert len(read_index(folder / "encoded"))
    return folder / "run", _run(
        "train_encoded.py", folder / "encoded", folder / "weights", folder / "run", "--steps", "2"
    )


@pytest.mark.ci
def test_curate_a_folder(curated: tuple[Path, str]) -> None:
    output, printed = curated
    verdicts = read_manifest(output)["verdict"].to_pylist()
    assert "kept" in verdicts
    assert printed.splitlines()[-1] == f"{verdicts.count('kept')} of {len(verdicts)} clips kept, in {output}"


@pytest.mark.ci
def test_train_on_an_encoded_set(trained: tuple[Path, str]) -> None:
    run, printed = trained
    assert [line.split()[:2] for line in printed.splitlines()] == [["step", "1"], ["step", "2"]]
    assert (run / "weights" / "transformer.safetensors").is_file()


@pytest.mark.ci
def test_sample_from_a_checkpoint(trained: tuple[Path, str]) -> None:
    output = trained[0].parent / "samples"
    size = ("--frames", "9", "--steps", "2")
    printed = _run("sample_checkpoint.py", trained[0], "A red ball bounces and knocks.", output, *size)
    with av.open(printed.split()[-1]) as sample:
        assert sample.streams.audio[0].codec_context.channels == 2
        assert sum(1 for _ in sample.decode(video=0)) == 9
