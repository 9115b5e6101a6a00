"""Split a text of any script into words that can be compared with those of another text."""

import re

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "km", "yue", "bo"})  # languages written without spaces
# The scripts of these languages: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_UNSPACED_SCRIPT = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def normalise(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation, so that two transcripts can be compared.

    In scripts without spaces, each character counts as a word.
    """
    kept = "".join(
        f" {c} " if c >= "\u0e00" and _UNSPACED_SCRIPT.match(c) else c if c.isalnum() or c in "'’" else " "
        for c in text.casefold()
    )
    return [word for word in (w.replace("’", "'").strip("'") for w in kept.split()) if word]
