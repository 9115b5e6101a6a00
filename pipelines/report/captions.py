"""`report/captions.html`: captions beside their clips, each sentence linked to its evidence on the clip's time line.

A sentence's evidence is the words, the voice, the tagged events or the picture that it was made from. The page filters
by language, sound class, the kind of what the checker took out, and how sure the evidence is; it says how much was
taken out.
"""

from collections import Counter
from typing import Any

from pipelines.report import pages
from pipelines.report.examples import Example

NAME = "captions.html"
# Evidence by its source, in the order of the time line's rows.
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
    """Whether a clip's caption brings its evidence."""
    return bool(caption.get("evidence"))


def removed_kinds(caption: dict) -> Counter[str]:
    """What was kept out of a caption: "speech: log_probability" by window or word, "claim: sound" by claim and kind.

    A clip's captions tell the same claim in several lengths; it counts once.
    """
    counts = Counter({f"speech: {reason}": n for reason, n in caption["transcript"]["removed"].items()})
    reasons = {reason for item in caption["removed"] for reason in item["reasons"]}
    counts.update(f"claim: {reason.split(':')[0]}" for reason in reasons)
    return counts


def render(
    shown: list[tuple[dict, Example]], removed: Counter[str], total: int, folder: str, index: str, review: str
) -> bytes:
    """The page of `total` captioned clips, of which those of these rows are there to look at.

    Args:
        removed: the sum of their `removed_kinds`.
        review: the file in which people judge those that are shown.
    """
    return pages.render(
        "captions.html",
        clips=[_clip(row, example) for row, example in shown],
        removed=removed.most_common(),
        total=total,
        rows=list(ROWS.items()),
        folder=folder,
        index=index,
        review=review,
    )


def _clip(row: dict, example: Example) -> dict[str, Any]:
    caption = row["caption"]
    length = max(caption["sound"]["seconds"], 0.001)
    sentences = medium_sentences(caption)
    scores = [score for item in sentences if (score := sureness(item, caption)) is not None]
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
    """The sentences of the caption as it is usually read, its middle length."""
    return [item for item in caption["evidence"] if "medium" in item["variants"]]


def sureness(item: dict, caption: dict) -> float | None:
    """How sure a sentence's evidence is, in [0, 1]: its least sure quoted word, its surest tag; None: not scored."""
    facts = item["facts"]
    if "words" in facts:
        first, last = facts["words"]
        words = caption["transcript"]["words"][first:last]
        return min(word["confidence"] for word in words if word.get("quotable", True))
    return max((tag["score"] for tag in facts.get("tags", [])), default=None)


def evidence_spans(item: dict, caption: dict) -> list[tuple[float, float]]:
    """Where in the clip a sentence's evidence lies, seconds; the whole clip where it has no time of its own."""
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
    return [reason.split(":")[0] for reason in item["reasons"]]
