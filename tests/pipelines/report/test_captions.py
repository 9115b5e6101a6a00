"""The caption page shows every sentence beside its evidence, escapes text, and counts by kind what was removed."""

import re
from collections import Counter

from pipelines.report import captions
from pipelines.report.examples import Example

WORDS = [
    {"word": "<b>shut</b>", "start": 1.0, "end": 1.5, "confidence": 0.9},
    {"word": "it", "start": 1.5, "end": 2.0, "confidence": 0.9},
]
CAPTION = {
    "sound": {"seconds": 4.0},
    "transcript": {"language": "en", "removed": {"log_probability": 2}, "words": WORDS},
    "evidence": [
        {"sentence": "The picture is red.", "variants": ["short", "medium"], "source": "picture", "facts": {}},
        {"sentence": "“<b>shut</b> it”.", "variants": ["medium"], "source": "transcript", "facts": {"words": [0, 2]}},
        {
            "sentence": "A dog is heard.",
            "variants": ["medium"],
            "source": "tags",
            "facts": {"tags": [{"label": "Dog", "start_s": 2.0, "end_s": 3.0, "score": 0.9}]},
        },
        {
            "sentence": "A woman can be seen.",
            "variants": ["medium"],
            "source": "seen",
            "facts": {"spans": [[0.5, 1.5], [3.0, 3.0]], "scores": {"a <woman>": 0.314}},
        },
        {"sentence": "Long only.", "variants": ["long"], "source": "sound", "facts": {}},
    ],
    "removed": [
        {"text": "A sad cat.", "reasons": ["sound: cat", "forbidden: sad"]},
        {"text": "A cat is heard from 1.0 to 2.0 seconds.", "reasons": ["sound: cat"]},
    ],
}
ROW = {"caption": CAPTION, "sound_class": "speech"}


def _page() -> str:
    example = Example(title="a & b.mp4", uri="x", span="0.0 – 4.0 s", sound_class="speech")
    removed = captions.removed_kinds(CAPTION)
    return captions.render([(ROW, example)], removed, 1, "set", "report.html", "review.tsv").decode()


def test_each_sentence_is_linked_to_where_its_evidence_lies() -> None:
    page = _page()
    marks = re.findall(r'data-of="(\d)" data-start="([\d.]+)" style="left:([\d.]+)%;width:([\d.]+)%"', page)
    assert marks == [
        ("4", "0.5", "12.5", "25.0"),
        ("4", "3.0", "75.0", "0.0"),
        ("1", "0.0", "0.0", "100.0"),
        ("2", "1.0", "25.0", "12.5"),
        ("2", "1.5", "37.5", "12.5"),
        ("3", "2.0", "50.0", "25.0"),
    ]
    assert page.count('class="claim"') == 4
    assert 'title="open_clip: a &lt;woman&gt; 0.31">A woman can be seen.' in page
    assert "Long only" not in page


def test_what_is_quoted_is_escaped_and_the_page_needs_no_network() -> None:
    page = _page()
    assert "“&lt;b&gt;shut&lt;/b&gt; it”." in page
    assert "a &amp; b.mp4" in page
    assert "http" not in page
    assert "1 of 1 captioned clips" in page


def test_what_was_taken_out_is_counted_by_kind() -> None:
    counts = captions.removed_kinds(CAPTION)
    assert counts == Counter({"speech: log_probability": 2, "claim: sound": 1, "claim: forbidden": 1})
    page = _page()
    assert '<td>claim: forbidden</td><td class="n">1</td>' in page
    assert 'data-removed="forbidden sound"' in page
    assert "<s>A sad cat.</s>" in page


def test_the_score_of_a_clip_is_the_lowest_of_its_evidence() -> None:
    assert 'data-score="0.900"' in _page()
    pictures = {**CAPTION, "evidence": CAPTION["evidence"][:1]}
    assert captions.evidence_score(pictures["evidence"][0], pictures) is None
