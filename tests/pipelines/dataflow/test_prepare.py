"""The verbs on real files: committed segments are not repeated, and a killed run resumes to the same bytes."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from data_prep.dataset.ledger import Ledger
from data_prep.settings import CurateSettings
from pipelines.dataflow.prepare import run_prepare
from pipelines.settings import EncodeSettings
from tests.pipelines.killing import digests, films, start

CURATE = {"curate": CurateSettings(clip_min_s=1.0)}


@pytest.mark.parametrize(
    ("stages", "inputs", "message"),
    [
        (("curate",), ["nowhere"], "'nowhere' does not exist"),
        (("caption",), ["nowhere"], "not a set made by `kinotone curate`"),
        (("encode",), ["a", "b"], "reads one set"),
        (("curate", "encode"), ["a"], "give neighbours"),
        (("publish",), ["a"], "give neighbours"),
    ],
)
def test_a_users_mistake_is_named_and_leaves_nothing(
    stages: tuple[str, ...], inputs: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_prepare(stages, inputs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_named_before_anything_starts(tmp_path: Path) -> None:
    source = films(tmp_path / "films", 0)
    encode = EncodeSettings(video_vae=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"^encode\.video_vae"):
        run_prepare(("curate", "caption", "encode"), [str(source)], tmp_path / "out", {"encode": encode})
    assert not (tmp_path / "out").exists()


def test_a_finished_output_is_left_alone_and_new_sources_are_added(ray_session: None, tmp_path: Path) -> None:
    source, output = films(tmp_path / "films", 3), tmp_path / "out"
    seen: list[tuple[str, int, int, str]] = []
    summary = run_prepare(("curate",), [str(source)], output, CURATE, progress=lambda *at: seen.append(at))
    assert seen[0] == ("curate", 0, 4, "")
    assert seen[-1][:3] == ("curate", 4, 4)
    assert re.fullmatch(r"[\d.e+]+ clips/s; a segment: curate [\d.e-]+ s, commit [\d.e-]+ s", seen[-1][3])
    assert summary["considered"] == summary["kept"] + sum(summary["dropped"].values()) + sum(summary["failed"].values())
    assert (summary["segments"], summary["failed"]) == (4, {"read": 1})
    assert summary["dropped"]["silence"] >= 1
    assert summary["kept"] >= 1
    assert {"summary.json", "report.html", "index.parquet", "settings.yaml"} <= {p.name for p in output.iterdir()}
    assert not [path for path in output.rglob(".*")]

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    began = time.monotonic()
    assert run_prepare(("curate",), [str(source)], output, CURATE) == summary
    assert time.monotonic() - began < 5
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before

    with pytest.raises(ValueError, match=r"curate\.clip_min_s: 1\.0 → 2\.0"):
        run_prepare(("curate",), [str(source)], output)

    more = films(tmp_path / "more", 0)
    grown = run_prepare(("curate",), [str(source), str(more)], output, CURATE)
    assert (grown["segments"], grown["failed"]) == (5, {"read": 2})
    unchanged = [path for path in before if path.parent.name in ("shards", "manifest", "ledger")]
    assert all(path.stat().st_mtime_ns == before[path] for path in unchanged)


@pytest.mark.slow
def test_a_killed_run_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    source, whole, output = films(tmp_path / "films", 40), tmp_path / "whole", tmp_path / "killed" / "out"
    process = start(source, whole)
    printed = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    assert printed == ("", "")  # Ray and MLflow print nothing to the terminal

    for kill, committed in ((signal.SIGINT, 1), (signal.SIGKILL, 15)):
        process = start(source, output)
        deadline = time.monotonic() + 300
        while len(Ledger(output).done()) < committed and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        # Ctrl-C reaches the whole foreground process group; SIGKILL reaches only the driver.
        (os.killpg if kill == signal.SIGINT else os.kill)(process.pid, kill)
        process.wait(timeout=60)
        assert process.returncode != 0
        assert not (output / "summary.json").exists()
    left_over = len(Ledger(output).done())
    assert 15 <= left_over < 41
    process = start(source, output)
    assert process.communicate(timeout=400) == ("", "")
    assert process.returncode == 0
    assert digests(output) == digests(whole)
