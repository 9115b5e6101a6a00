"""Statistics do not depend on how the manifest is split: each clip counts once, and the same rows are kept."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dataset.shards import MANIFEST_SCHEMA
from pipelines.report.statistics import BINS, EXAMPLES, SCORES, collect_statistics

EMPTY = {name: "" for name in MANIFEST_SCHEMA.names}
CAPTION = {
    "evidence": [{}],
    "transcript": {"language": "de", "removed": {"log_probability": 1}},
    "removed": [{"reasons": ["sound: dog"]}],
}


def _row(number: int, verdict: str, reason: str, kind: str, score: float, end_s: float) -> dict:
    counts = {
        name: 0 for name, of in zip(MANIFEST_SCHEMA.names, MANIFEST_SCHEMA.types, strict=True) if of == pa.int64()
    }
    own = {"segment_id": f"s{number % 3}", "clip_id": f"c{number:03}", "start_s": 1.0, "end_s": end_s}
    judged = {"verdict": verdict, "reason": reason, "sound_class": kind}
    caption = json.dumps(CAPTION if number % 2 else {})
    measured = {"scores": [("voice_ratio", score), ("unheard_of", 1.0)], "tags": [], "info": "{}", "caption": caption}
    return {**EMPTY, **counts, **own, **judged, **measured}


ROWS = st.lists(
    st.tuples(
        st.sampled_from([("kept", ""), ("dropped", "silence"), ("dropped", "tone"), ("failed", "read")]),
        st.sampled_from(["speech", "music", ""]),
        st.floats(-1, 2),
        st.sampled_from([3.0, 5.0, float("inf")]),
    ),
    min_size=1,
    max_size=60,
).map(lambda drawn: [_row(n, *verdict, kind, score, end_s) for n, (verdict, kind, score, end_s) in enumerate(drawn)])


@given(ROWS, st.integers(1, 60), st.randoms())
def test_parts_in_any_order_count_as_the_whole(rows, size, random):
    whole = collect_statistics([pa.Table.from_pylist(rows, MANIFEST_SCHEMA)])
    mixed = random.sample(rows, len(rows))
    parts = collect_statistics(
        pa.Table.from_pylist(mixed[at : at + size], MANIFEST_SCHEMA) for at in range(0, len(rows), size)
    )
    assert parts.clips == whole.clips == Counter((row["verdict"], row["reason"]) for row in rows)
    assert dict(parts.classes) == {
        name: replace(kind, hours=pytest.approx(kind.hours)) for name, kind in whole.classes.items()
    }
    assert parts.removed == whole.removed
    assert parts.captioned == whole.captioned == len(rows) // 2
    assert parts.hours == pytest.approx(dict(whole.hours))
    for key in whole.clips:
        remembered = whole.rows(*key)
        assert parts.rows(*key) == remembered
        assert max(Counter(row["sound_class"] for row in remembered).values()) <= EXAMPLES
        same = [row for row in rows if (row["verdict"], row["reason"]) == key]
        assert len(remembered) == sum(min(EXAMPLES, n) for n in Counter(row["sound_class"] for row in same).values())
    assert list(whole.histograms) == ["voice_ratio"]
    assert (parts.histograms["voice_ratio"] == whole.histograms["voice_ratio"]).all()
    below = [row["scores"][0][1] for row in rows if row["verdict"] == "kept"]
    expected, _ = np.histogram(np.clip(below, 0, 1), BINS, (0, 1))
    assert whole.histograms["voice_ratio"][1].sum() == expected.sum() == len(below)


def test_what_lies_beyond_the_axis_is_in_the_outermost_bin():
    high = SCORES["voice_ratio"].high
    rows = [_row(n, "kept", "", "speech", score, 3.0) for n, score in enumerate([-5.0, 0.5, high, 7.0])]
    (_, kept) = collect_statistics([pa.Table.from_pylist(rows, MANIFEST_SCHEMA)]).histograms["voice_ratio"]
    assert (kept[0], kept[BINS // 2], kept[-1]) == (1, 1, 2)
