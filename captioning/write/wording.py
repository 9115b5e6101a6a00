"""Reduce different wordings of one claim to a canonical form that the checker's patterns match.

`canonical` replaces the phrases of a writer by the few forms that the patterns know. `ways_to_name` returns the sets of
words that may name a sound: "a dog barking" is also "barking" or "a dog", but "a car alarm" is "an alarm" and not "a
car".
"""

import re
from functools import cache

from captioning.write.vocabulary import words as split_words

# Words that claim nothing, but only join claims.
NEUTRAL_WORDS = frozenset(
    split_words(
        """
    the a an of is are was were be being been and in on at there it its this that which who then seconds second s
    picture clip sound sounds heard hear hears hearing audible can one also by to with has have as something camera
    play plays playing played audio recording soundtrack comes come starts start begins begin lasts last
    shows show shown seen visible setting words again
        """
    )
)

NUMBERS = {
    name: count for count, name in enumerate(split_words("zero one two three four five six seven eight nine ten"))
} | {
    "single": 1,
    "twice": 2,
    "once": 1,
}

# (pattern, canonical form), applied in this order to lower-case text without quotes.
_FORMS = [
    (re.compile(pattern), form)
    for pattern, form in (
        (r"\b(?:video|image|frame|shot|screen|footage|scene)\b", "picture"),
        (r"\bnoises? of\b", "sound of"),
        (r"\bgray\b", "grey"),
        (r"\b(?:greyscale|monochrome|black-and-white)\b", "black and white"),
        (r"\b(?:mainly|largely|chiefly|predominantly|for the most part)\b", "mostly"),
        (r"\b(?:in part)\b", "partly"),
        (r"\b(?:the whole time|the entire time|all the time|from beginning to end|the whole clip)\b", "throughout"),
        (r"\bthroughout the (?:clip|picture|recording)\b", "throughout"),
        (r"^first (?:comes|there is)|^at first\b", ""),
        (r"\bcomes in once (.*?) has begun\b", r"after \1"),
        (r"\b(?:followed by|and then|after that|afterwards|later|next)\b", "then"),
        (r"\b(?:at the same time as|during|meanwhile|whilst|together with)\b", "while"),
        (r"\b(bottom|top)\b(?! (?:half|third|area|edge|region|side|part))", lambda m: f"{m.group(1)} part"),
        (r"\b(bottom|top)\b", lambda m: {"bottom": "lower", "top": "upper"}[m.group(1)]),
        (r"\ba? ?(?:slow )?(pan|tilt) to the (left|right)\b", r"camera \1s \2"),
        (r"\b(lower|upper|left|right|middle) (?:half|third|area|edge|region|side)\b", r"\1 part"),
        (r"\bcent(?:er|re) of\b", "centre of"),
        (r"\bcamera (?:stays|remains|is|holds) (?:still|fixed|stationary|in place|unmoving)\b", "camera is static"),
        (r"\bcamera (?:stays|remains) static\b", "camera is static"),
        (r"\b(?:static|fixed|stationary) camera\b", "camera is static"),
        (r"\bcamera (?:is |slowly |)(pan|tilt)(?:s|ning|ing)?(?: slowly)? (?:to the |towards the )?", r"camera \1s "),
        (r"\bwards?\b", ""),
        (r"\b(pans|tilts) (left|right|up|down)wards?\b", r"\1 \2"),
        (r"\bpicture (?:stays|remains) still\b", "picture is still"),
        (r"\b(?:gets|becomes|grows|grow)\b", "grows"),
    )
]  # fmt: skip


def canonical(text: str) -> str:
    """Replace each phrase of a lower-case sentence by its canonical form."""
    for pattern, form in _FORMS:
        text = pattern.sub(form, text)
    return text


def stem(word: str) -> str:
    """Strip the endings of number and tense from a word: barks, barked, barking → bark."""
    for ending, instead in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        short = word.removesuffix(ending) + instead
        if word.endswith(ending) and len(short) >= 3 and re.search("[aeiouy]", short) and not word.endswith("ss"):
            word = short
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


@cache
def ways_to_name(name: str) -> frozenset[frozenset[str]]:
    """Return the sets of word stems that may name a sound; a sentence must contain all stems of one set.

    A set has all words of the name; those before "on", "of", …; the last of these; or only who makes the sound.
    "a dog barking" → {dog, bark}, {bark}, {dog}; "a car alarm" → {car, alarm}, {alarm}; "rain on a surface" → … {rain}.
    """
    words = [word for word in re.findall(r"[^\W_]+", name.lower()) if word not in ("a", "an", "the", "and")]
    words = [word for word in words if word not in NEUTRAL_WORDS] or words
    until = next((at for at, word in enumerate(words) if word in ("on", "of", "with", "in", "by") and at), len(words))
    head = words[:until]
    every = [word for word in words if word not in NEUTRAL_WORDS]
    found = {frozenset(map(stem, every)), frozenset(map(stem, head)), frozenset({stem(head[-1])})}
    if len(head) == 2 and head[1].endswith("ing"):
        found.add(frozenset({stem(head[0])}))
    return frozenset(one for one in found if one)
