"""A source is opened once per span, and no more often than that to find the spans."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.clip import Segment
from data_prep.curation.curator import Curator
from data_prep.curation.spans import spans
from data_prep.media import container
from data_prep.settings import CurateSettings
from data_prep.sources.listing import list_sources
from tests.data_prep.media.marked_media import noise_sound, numbered_frame, write


@pytest.fixture
def film(tmp_path: Path) -> Segment:
    write(tmp_path / "film.mp4", [numbered_frame(3)] * 175, 0.3 * noise_sound(7.0, 48000))
    return list_sources([str(tmp_path)])[0]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are opened; clips in memory are not counted."""
    found: list[str] = []
    real = av.open

    def counted(file, *args, **kwargs):
        if isinstance(file, str):
            found.append(file)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(container.av, "open", counted)
    return found


def test_a_short_source_is_its_own_span_and_is_opened_once(film, opened):
    assert spans(film, 600.0) == [film]
    Curator(CurateSettings())([film])
    assert opened == [film.uri]


def test_a_long_source_is_opened_once_per_span(film, opened):
    film = replace(film, size=1 << 20)
    found = spans(film, 2.0)
    assert [span.start_s for span in found] == pytest.approx([0.0, 1.74, 3.48, 5.22], abs=0.01)
    assert np.isinf(found[-1].end_s)
    assert len({span.segment_id for span in found}) == len(found)
    looks = len(opened)
    assert looks <= 2
    curator = Curator(CurateSettings(segment_s=2.0))
    for span in found:
        curator.curate_span(span)
    assert len(opened) == looks + len(found)


def test_a_short_stretch_with_known_times_is_not_opened(film, opened):
    bounded = replace(film, start_s=1.0, end_s=2.5)
    assert spans(bounded, 2.0) == [bounded]
    assert opened == []


def test_a_source_that_cannot_be_divided_has_its_verdict():
    (failed,) = spans(Segment("s", "/no/such.mp4", part=1, parts=2), 2.0)
    (clip,) = failed.clips
    assert (clip.verdict, clip.reason) == ("failed", "read")
