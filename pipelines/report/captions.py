"""`report/captions.html`: clips with their captions, each sentence linked to its evidence on the clip's time line.

The evidence of a sentence is what it was made from: words, a voice, tagged events or the picture. The page filters the
clips by language, sound class, the kind of claim that the checker removed, and the score of the evidence. It also
counts what was removed.
"""

from collections import Counter
from typing import Any

from pipelines.report import pages
from pipelines.report.examples import Example

NAME = "captions.html"
# The rows of the time line, in order: source of the evidence → label.
ROWS = {
    "seen": "frames",
    "picture": "picture",
    "transcript": "words",
    "voice": "voice",
    "tags": "events",
    "sound": "level",
    "written": "claims",
}


def captioned(caption: dict) -> bool:
    """Return whether a caption (the parsed JSON of a manifest row) has sentences with evidence."""
    return bool(caption.get("evidence"))


def removed_kinds(caption: dict) -> Counter[str]:
    """Count what the checker removed from a caption, by kind.

    "speech: REASON" counts windows or words of the transcript; "claim: KIND" counts claims of sentences. A claim that
    stands in several lengths of the caption counts once.
    """
    counts = Counter({f"speech: {reason}": n for reason, n in caption["transcript"]["removed"].items()})
    reasons = {reason for item in caption["removed"] for reason in item["reasons"]}
    counts.update(f"claim: {reason.split(':')[0]}" for reason in reasons)
    return counts


def render(
    shown: list[tuple[dict, Example]], removed: Counter[str], total: int, folder: str, index: str, review: str
) -> bytes:
    """Render the page of captions and their evidence.

    Args:
        shown: the clips to show: (row of the manifest, example).
        removed: the sum of `removed_kinds` over all captioned clips.
        total: the number of captioned clips.
        folder: the name of the set.
        index: the file name of the report's first page.
        review: the file name of the table in which people judge the sentences.

    Returns:
        The HTML page, UTF-8.
    """
    return pages.render(
        "captions.html",
        clips=[_clip_values(row, example) for row, example in shown],
        removed=removed.most_common(),
        total=total,
        rows=list(ROWS.items()),
        folder=folder,
        index=index,
        review=review,
    )


def _clip_values(row: dict, example: Example) -> dict[str, Any]:
    """Return the values of one clip that the template shows, by name. A span is (start %, length %, start in s)."""
    caption = row["caption"]
    length = max(caption["sound"]["seconds"], 0.001)
    sentences = medium_sentences(caption)
    scores = [score for item in sentences if (score := evidence_score(item, caption)) is not None]
    return {
        "example": example,
        "score": min(scores, default=1.0),
        "language": caption["transcript"]["language"] or "none",
        "class": row["sound_class"] or "not judged",
        "kinds": sorted({kind for item in caption["removed"] for kind in _kinds(item)}),
        "length": length,
        "sentences": [
            {
                "at": at,
                "text": item["sentence"],
                "source": item["source"],
                "scores": item["facts"].get("scores", {}),
                "spans": [
                    (round(100 * start / length, 2), round(100 * (end - start) / length, 2), start)
                    for start, end in evidence_spans(item, caption)
                ],
            }
            for at, item in enumerate(sentences, 1)
        ],
        "removed": [(item["text"], ", ".join(item["reasons"])) for item in caption["removed"]],
    }


def medium_sentences(caption: dict) -> list[dict]:
    """Return the sentences of the medium length of a caption; each is a dict with its text and its evidence."""
    return [item for item in caption["evidence"] if "medium" in item["variants"]]


def evidence_score(item: dict, caption: dict) -> float | None:
    """Return how certain the evidence of a sentence is, in [0, 1].

    Args:
        item: a sentence of `caption["evidence"]`.
        caption: its caption.

    Returns:
        The lowest confidence of the quoted words, or the highest score of the tags; None for evidence without a score.
    """
    facts = item["facts"]
    if "words" in facts:
        first, last = facts["words"]
        words = caption["transcript"]["words"][first:last]
        return min(word["confidence"] for word in words if word.get("quotable", True))
    return max((tag["score"] for tag in facts.get("tags", [])), default=None)


def evidence_spans(item: dict, caption: dict) -> list[tuple[float, float]]:
    """Return when the evidence of a sentence occurs in the clip.

    Args:
        item: a sentence of `caption["evidence"]`.
        caption: its caption.

    Returns:
        (start, end) in seconds from the start of the clip; one span for all of the clip if the evidence has no times.
    """
    facts = item["facts"]
    if "words" in facts:
        first, last = facts["words"]
        return [(word["start"], word["end"]) for word in caption["transcript"]["words"][first:last]]
    if "tags" in facts:
        return [(tag["start_s"], tag["end_s"]) for tag in facts["tags"]]
    if facts.get("spans"):
        return [(start, end) for start, end in facts["spans"]]
    if "voiced" in facts:
        return [(start, end) for start, end in facts["voiced"]]
    if "speakers" in facts:
        return [(start, end) for speaker in facts["speakers"] for start, end in speaker["spans"]]
    return [(0.0, caption["sound"]["seconds"])]


def _kinds(item: dict) -> list[str]:
    """Return the kinds of claims that a removed sentence made: its reasons, each up to the colon."""
    return [reason.split(":")[0] for reason in item["reasons"]]
