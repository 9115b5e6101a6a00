"""A curated set for caption tests: each clip has one colour."""

from pathlib import Path

from data_prep.clip import Clip, Segment, Tag
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import commit_segment
from tests.captioning.sounds import chord, clip_of
from tests.chat_server import NAMES


def write_caption_set(root: Path, segments: int) -> str:
    """Write segments with two kept clips and one dropped clip each, with music and alternating colours.

    Returns the set's folder.
    """
    colours, made = list(NAMES), {}
    for number in range(segments):
        clips = []
        for place in range(2):
            colour = colours[(2 * number + place) % len(colours)]
            made[colour] = made.get(colour) or clip_of(chord(1), [Tag("Music", 0.0, 1.0, 0.9)], colour=NAMES[colour])
            one = made[colour]
            info = {**one.info, "fps": 10.0}
            clips.append(Clip(f"{number:03}-{place}", place, place + 1.0, media=one.media, tags=one.tags, info=info))
        clips.append(Clip(f"{number:03}-2", 2.0, 3.0).dropped("silence"))
        segment = Segment(f"segment{number:03}", "memory", 0.0, 3.0, size=1, content_key=f"{number}", clips=clips)
        Ledger(root).commit(commit_segment(root, segment).entry)
    return str(root)
