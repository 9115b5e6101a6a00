"""The report counts every clip once, embeds its files, and names the error of a clip that it cannot show."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.clip import Clip, Segment, Tag
from data_prep.dataset.index import each_manifest
from data_prep.media.write_mp4 import write_mp4
from pipelines.dataflow.commit import claim, commit_segments, finish
from pipelines.report import examples
from pipelines.report.overview import KEPT_EXAMPLES, OTHER_EXAMPLES, PAGE_EXAMPLES, funnel, funnel_figure, write_report
from pipelines.report.statistics import collect_statistics


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "ball <b>&.mp4"
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 255, (24, 1, 1, 3), dtype=np.uint8), 64, axis=1).repeat(96, axis=2)
    write_mp4(path, frames, 24, rng.normal(0, 0.1, (2, 24000)).astype(np.float32), 24000)
    return path


def _segment(name: str, film: Path) -> Segment:
    info = {"width": 96, "height": 64, "fps": 24.0, "in_s": 0.0, "out_s": 1.0, "video_codec": "h264"}
    kept = Clip(
        f"{name}-a", 0, 1, sound_class="environment", scores={"silence_ratio": 0.1, "tag_event": 0.8},
        tags=[Tag("Bouncing", 0, 1, 0.8)], media=film.read_bytes(), info=info,
        caption={"text": "A ball bounces & rolls."},
    )  # fmt: skip
    silent = Clip(f"{name}-b", 0, 1, scores={"silence_ratio": 0.99}, sound_class="silence").dropped("silence")
    broken = replace(kept, clip_id=f"{name}-c", caption={}).failed("read", "zero bytes")
    return Segment(name, str(film), content_key=name, clips=[kept, silent, broken])


@pytest.fixture(scope="module")
def root(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    claim(root, {"curate": {"policy": {"silence_max": 0.97, "event_min": 0.3}}}, ["films"])
    segments = [_segment(f"s{n:02}", film) for n in range(12)]
    gone = Clip("gone-a", 0, 2, sound_class="silence").dropped("silence")
    commit_segments(root, [*segments, Segment("zz", "/gone/away.mp4", clips=[gone])], [{"curate": 0.5}] * 13)
    finish(root, "curate", {"curate": 6.0}, 3.0)
    return root


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_quotes(root: Path) -> None:
    page = Path(write_report(root).path).read_text()
    assert "http://" not in page
    assert "https://" not in page
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "ball &lt;b&gt;&amp;.mp4" in page
    assert "A ball bounces &amp; rolls." in page
    assert "zero bytes" in page
    assert "silence_max 0.97" in page


def test_examples_are_limited_and_dropped_ones_are_cut_from_their_source(root: Path) -> None:
    page = Path(write_report(root).path).read_text()
    examples = page.split("<h2>Examples</h2>")[1]
    kept, dropped, failed = examples.split("<h3>")[1:]
    assert kept.count("<video") == KEPT_EXAMPLES
    assert dropped.count("<video") == OTHER_EXAMPLES
    assert "small copy" in dropped
    assert "small copy" not in kept
    assert failed.count("<video") == 0
    assert "3 of 13" in dropped


def test_each_verdict_has_a_page_of_its_own(root: Path) -> None:
    made = write_report(root)
    assert made.pages == ["kept.html", "dropped-silence.html", "failed-read.html"]
    index = Path(made.path).read_text()
    for name in made.pages:
        page = (root / "report" / name).read_text()
        assert f'href="report/{name}"' in index
        assert 'href="../report.html"' in page
        assert page.count('<div class="card"') == PAGE_EXAMPLES
        assert "https://" not in page
    assert "12 of 13 clips" in (root / "report" / "dropped-silence.html").read_text()
    assert (root / "report" / "dropped-silence.html").read_text().count('class="spectrum"') >= PAGE_EXAMPLES - 1


def test_languages_are_counted_where_clips_are_transcribed(film: Path, tmp_path: Path) -> None:
    claim(tmp_path, {"caption": {}}, ["x"])
    segment = _segment("s", film)
    segment.clips[0].caption["transcript"] = {"language": "de"}
    commit_segments(tmp_path, [segment], [{}])
    finish(tmp_path, "caption", {}, 1.0)
    page = Path(write_report(tmp_path).path).read_text()
    assert "<h2>Languages</h2>" in page
    assert "<td>de</td>" in page


def test_near_duplicates_are_shown_beside_what_they_are_doubles_of(film: Path, tmp_path: Path) -> None:
    claim(tmp_path, {"caption": {}}, ["x"])
    segments = [_segment(name, film) for name in ("first", "second")]
    for segment in segments:
        segment.clips[0].info |= {"picture_hashes": ["00ff00ff00ff00ff"], "sound_hash": "0f0f0f0f0f0f0f0f"}
    commit_segments(tmp_path, segments, [{}, {}])
    assert finish(tmp_path, "caption", {}, 1.0)["near_duplicates"] == 1
    made = write_report(tmp_path)
    assert made.pages[-1] == "near_duplicates.html"
    page = (tmp_path / "report" / "near_duplicates.html").read_text()
    assert page.count("<video") == 2
    assert "2 of 1 clips" not in page
    index = Path(made.path).read_text()
    assert "near duplicates among the kept" in index


def test_a_source_that_hangs_its_decoder_costs_its_preview_only(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it waits for a writer that never comes
    monkeypatch.setattr(examples, "TIMEOUT_S", 8.0)
    rows = [{"verdict": "dropped", "uri": str(uri), "start_s": 0.0, "end_s": 1.0, "sound_class": "silence", "error": "",
             "caption": {}, "tags": [], "media_size": 0, "info": {}, "shard": "", "media_offset": 0}
            for uri in (tmp_path / "hangs.mp4", film)]  # fmt: skip
    with examples.ExampleDrawer(tmp_path) as drawer:
        hung, drawn = [drawer.example(row) for row in rows]
    assert "hung for 8 s" in hung.error
    assert drawn.video, drawn.error
    assert not drawn.error


def test_a_kept_clip_is_handed_to_the_tracking_run(root: Path, film: Path) -> None:
    samples = dict(write_report(root).samples)
    assert samples["clip.mp4"] == film.read_bytes()
    assert Image.open(io.BytesIO(samples["contact_sheet.png"])).width == 640
    assert Image.open(io.BytesIO(samples["spectrogram.png"])).width == 640


def test_the_funnel_sums_to_the_clips_considered(root: Path) -> None:
    steps = funnel(collect_statistics(each_manifest(root)))
    found = [(step.name, step.verdict, step.clips) for step in steps]
    assert found == [("kept", "kept", 12), ("silence", "dropped", 13), ("read", "failed", 12)]
    assert [step.hours * 3600 for step in steps] == pytest.approx([12, 14, 12])
    assert sum(step.share for step in steps) == pytest.approx(1)
    figure = Image.open(io.BytesIO(funnel_figure(json.loads((root / "summary.json").read_text()))))
    assert figure.width > 500


def test_a_source_that_is_gone_costs_its_preview_only(tmp_path: Path) -> None:
    claim(tmp_path, {"caption": {}}, ["x"])
    commit_segments(tmp_path, [Segment("s", "/gone/away.mp4", clips=[Clip("a", 0, 2).dropped("silence")])], [{}])
    finish(tmp_path, "curate", {}, 1.0)
    page = Path(write_report(tmp_path).path).read_text()
    assert "away.mp4" in page
    assert "no preview: FileNotFoundError" in page
