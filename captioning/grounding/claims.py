"""The claims that a caption may make about picture, sound level and speakers, and the test of each.

Each entry of `PEOPLE` and `CLAIMS` is a pattern over the canonical wording (`wording.canonical`), the kind of the
claim, and a test against the clip's facts. The order matters: the checker blanks the words of a match, so a long
pattern comes before the shorter patterns that also match some of its words. A claim about something that was not
measured is false.
"""

import re
from collections.abc import Callable

from captioning.look.picture_statistics import COLOURS
from captioning.write.compose import MIN_AV_AGREEMENT, Facts, largest
from captioning.write.vocabulary import LANGUAGES
from captioning.write.wording import NUMBERS

_COLOUR = "|".join(COLOURS)
_LIST = rf"(?:{_COLOUR})(?:(?:, | and |, and )(?:{_COLOUR}))*"
LANGUAGE_NAMES = frozenset(name.lower() for name in LANGUAGES.values())
_NAMED = "|".join(sorted(LANGUAGE_NAMES, key=len, reverse=True))
_COUNT = "|".join(NUMBERS)
_PEOPLE = r"(?:speakers?|voices?|people|persons?|talkers?)"
_REGION = r"middle|upper|lower|left|right"

# The test of a claim: (match of its pattern, facts) → whether the claim is true.
Holds = Callable[[re.Match, Facts], bool]


def holds(test: Holds, match: re.Match, facts: Facts) -> bool:
    """Return whether the claim in `match` is true by its `test`; False if what it is about was not measured."""
    try:
        return bool(test(match, facts))
    except (KeyError, TypeError):
        return False


def speakers(facts: Facts) -> int:
    """Return how many speakers were distinguished; 0 if fewer than two were."""
    return len(facts.transcript.get("speakers", []))


def _colour_list(match: re.Match, facts: Facts) -> bool:
    """Return whether "picture is (mostly, partly) COLOURS" is true.

    The colours must be the largest ones, in order, and fill 90 % of the picture ("mostly": 50 %, "partly": any share).
    """
    named = re.findall(_COLOUR, match.group("colours"))
    shares = facts.picture["colours"]
    total = sum(shares.get(name, 0) for name in named)
    if facts.picture["black_and_white"] or named != list(shares)[: len(named)]:
        return False
    if len(named) > len(largest(shares)[0]):
        return False
    return total >= {"mostly": 0.5, "partly": 0.0}.get(match.group("how") or "", 0.9)


def _dominates(match: re.Match, facts: Facts) -> bool:
    """Return whether the named colours are the largest ones, in order, and fill at least half of the picture."""
    named = re.findall(_COLOUR, match.group("colours"))
    shares = facts.picture["colours"]
    return named == list(shares)[: len(named)] and sum(shares[name] for name in named) >= 0.5


def _region(match: re.Match, facts: Facts) -> bool:
    """Return whether the named colour is the measured colour of the named region."""
    return facts.picture["regions"].get(match.group("region")) == match.group("colour")


def _language(match: re.Match, facts: Facts) -> bool:
    """Return whether words were heard and Whisper detected the named language in them."""
    spoken = facts.transcript
    return (
        bool(spoken["words"])
        and spoken["language_probability"] is not None
        and LANGUAGES.get(spoken["language"], "").lower() == match.group(1)
    )


def _speaker_count(match: re.Match, facts: Facts) -> bool:
    """Return whether the named number of speakers is the number that was distinguished."""
    word = match.group(1)
    return speakers(facts) == (int(word) if word.isdigit() else NUMBERS[word])


def _side(match: re.Match, facts: Facts) -> bool:
    """Return whether the sound is at least 6 dB louder on the named side."""
    return facts.sound["side_db"] * (1 if match.group(1) == "right" else -1) >= 6


def _level_trend(match: re.Match, facts: Facts) -> bool:
    """Return whether the sound becomes at least 10 dB louder or quieter, as named."""
    return facts.sound["course_db"] * (1 if match.group(1) == "louder" else -1) >= 10


# Claims about how many people speak. The checker tests them before sounds, since "a voice" also names a sound.
PEOPLE: list[tuple[re.Pattern, str, Holds]] = [
    (re.compile(pattern), kind, test)
    for pattern, kind, test in (
        (rf"\b(?:exactly |only |just |a )?({_COUNT}|\d+) (?:different )?{_PEOPLE}\b", "speakers", _speaker_count),
        (r"\b(?:several|many|multiple) (?:speakers|voices|people)\b", "speakers", lambda m, f: speakers(f) > 1),
        (r"\b(?:a|the|another) (?:speaker|voice|person)\b", "speakers", lambda m, f: bool(f.transcript["words"])),
    )
]

# All other claims, except those that `checker.py` parses itself: quotes, times, order, sounds and seen phrases.
CLAIMS: list[tuple[re.Pattern, str, Holds]] = [
    (re.compile(pattern), kind, test)
    for pattern, kind, test in (
        (
            r"\bpicture is (?:in )?black and white\b|\bblack and white picture\b",
            "colour",
            lambda m, f: f.picture["black_and_white"],
        ),
        (rf"\b(?P<colour>{_COLOUR}) in the (?P<region>{_REGION})(?: part)?(?: of the picture)?\b", "colour", _region),
        (
            rf"\b(?P<region>{_REGION}) part(?: of the picture|, the picture)? (?:is|shows) (?P<colour>{_COLOUR})\b",
            "colour",
            _region,
        ),
        (
            rf"\b(?P<colour>{_COLOUR}) (?:fills|covers) the (?P<region>{_REGION})(?: part)?(?: of the picture)?\b",
            "colour",
            _region,
        ),
        (rf"\bpicture (?:is|shows) (?:(?P<how>mostly|partly) )?(?P<colours>{_LIST})\b", "colour", _colour_list),
        (
            rf"\b(?P<colours>{_LIST}) (?:dominates?|makes? up most of|fills? most of) the picture\b",
            "colour",
            _dominates,
        ),
        (rf"\b({_COLOUR})\b", "colour", lambda m, f: m.group(1) in f.picture["colours"]),
        (r"\bpicture is (?:very )?dark\b|\bdark picture\b", "brightness", lambda m, f: f.picture["brightness"] < 0.2),
        (r"\bpicture is bright\b|\bbright picture\b", "brightness", lambda m, f: f.picture["brightness"] > 0.75),
        (r"\bpicture is still\b", "movement", lambda m, f: f.picture["movement"] < 0.0005),
        (r"\bcamera is static\b", "camera", lambda m, f: f.picture["camera"] == "static"),
        (
            r"\bcamera (pan|tilt)s +(left|right|up|down)\b",
            "camera",
            lambda m, f: f.picture["camera"] == f"{m.group(1)}s {m.group(2)}",
        ),
        (
            r"\bsound (?:moves|travels|goes) from (?:the )?(left to(?: the)? right|right to(?: the)? left)\b",
            "side",
            lambda m, f: f.sound["travel"] == m.group(1).replace("the ", ""),
        ),
        (
            r"\b(?:moves|crosses|travels|goes)(?: across)?(?: the picture)? from (left to right|right to left)\b",
            "movement",
            lambda m, f: f.picture["path"] == m.group(1),
        ),
        (
            r"\b(?:movement|motion) (?:is |)(?:in|on) the (left|right|centre)(?: part)?(?: of the picture)?\b",
            "movement",
            lambda m, f: f.picture["where"] == m.group(1),
        ),
        (r"\bpicture is cut once\b|\b(?:one|a single) cut\b", "cut", lambda m, f: len(f.picture["cuts"]) == 1),
        (r"\bpicture is cut (\d+) times\b", "cut", lambda m, f: len(f.picture["cuts"]) == int(m.group(1))),
        (rf"\b({_COUNT}) cuts\b", "cut", lambda m, f: len(f.picture["cuts"]) == NUMBERS[m.group(1)]),
        (
            r"\bsteady sound is in the background(?:, strongest at (low|middle|high) frequencies)?",
            "background",
            lambda m, f: f.sound["steady"] is not None and m.group(1) in (None, f.sound["steady"]["band"]),
        ),
        (
            r"\bsounds? begins? as something in the picture moves\b",
            "picture and sound",
            lambda m, f: f.sound["av_agreement"] >= MIN_AV_AGREEMENT,
        ),
        (r"\b(?:sound|it) is quiet\b", "level", lambda m, f: f.sound["level_db"] < -40),
        (r"\b(?:sound|it) is loud\b", "level", lambda m, f: f.sound["level_db"] > -12),
        (r"\b(?:sound|it) grows (louder|quieter)\b", "level", _level_trend),
        (r"\b(?:sound|it) is louder on the (left|right)(?: part)?\b", "side", _side),
        (rf"\b({_NAMED})(?:-language|-speaking)?\b", "language", _language),
    )
]
