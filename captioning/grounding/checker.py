"""Check that a caption states only what was measured: parse each sentence into claims, and test each claim.

A claim is a quote, a time, an order, a sound, a number of speakers, a colour, a language, a movement … It must follow
from the clip's `Facts`. After the words of all claims are blanked, only words that claim nothing may remain. So an
invented subject, an emotion or a guess is found even if it is on no list; the lists only set the kind in the reason.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from captioning.grounding.claims import CLAIMS, LANGUAGE_NAMES, PEOPLE, Holds, holds
from captioning.hear.text_normalisation import normalise
from captioning.write.compose import Facts, Sentence, find_utterances, nameable_sounds
from captioning.write.vocabulary import FORBIDDEN, MUSIC, SPEECH, spans
from captioning.write.wording import NEUTRAL_WORDS, NUMBERS, canonical, stem, ways_to_name

Spans = list[tuple[float, float]]

_TOLERANCE_S = 0.3  # largest difference between a time in a caption and the measured time
_MOMENTARY = -1.0  # used as the end of a stated time that is one moment ("at 2.0 seconds")
_QUOTE = re.compile(r"“([^“”]*)”|\"([^\"]*)\"")
_WRITTEN = re.compile(r"\b[Tt]he (?:text|writing|words?) “([^“”]*)” (?:is|are) (?:shown|seen|visible)\b")
_SPEECH_WORDS = ("speech", "voice", "says", "say", "said", "speaking", "spoken", "speaks", "talking", "utters", "reads")
_HEARING = re.compile(rf"\ue000|\b(?:sounds?|heard?|hears|hearing|audible|music|{'|'.join(_SPEECH_WORDS)})\b")
# While a sentence is parsed, private-use characters replace some of its text: U+E000 replaces a quote, and from U+E100
# on there is one character for each seen phrase.
_FIRST_SEEN_MARK = 0xE100
_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
_NUMBER = r"(\d+(?:\.\d+)?)(?: seconds\b| ?s\b)?"
_TIMES = re.compile(rf"(?:\bfrom |\bbetween |\b){_NUMBER} ?(?:to|and|until|till|–) {_NUMBER}")
_MOMENT = re.compile(r"\bat (\d+(?:\.\d+)?) ?(?:seconds|s)\b")
_THROUGHOUT = re.compile(r"\bthroughout\b")
_WHO = re.compile(r"\bspeaker (\d)\b|\b(?:the )?(first|second|third|fourth) (?:speaker|voice|person)\b")
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4}
_LINK = re.compile(r"\b(then|before|after|while)\b")
_BREAK = re.compile(r"[,;:–]| - |\b(?:and|while|then|before|after|with|over|but|as)\b")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_PIECE = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Removed:
    """A removed sentence or phrase, and the reasons, each as "kind: words"."""

    text: str
    reasons: tuple[str, ...]


@dataclass
class _Clause:
    """The claims of a sentence that share their times.

    Attributes:
        link: How the clause follows the clause before it in time: "", "then", "after" or "while".
        claims: For each claim, the spans in seconds where it was measured.
        times: The times that the sentence states, as (start, end) in seconds; the end of a moment is `_MOMENTARY`.
        throughout: Whether the sentence says "throughout".
    """

    link: str = ""
    claims: list[Spans] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    throughout: bool = False

    @property
    def timed(self) -> bool:
        """Whether the sentence states when the claims happen."""
        return bool(self.times) or self.throughout

    def when(self) -> list[Spans]:
        """Return the stated times as one list of spans; if none is stated, the measured spans of each claim."""
        return [[(s, max(s, e)) for s, e in self.times]] if self.times else self.claims


def ground(sentences: list[Sentence], facts: Facts) -> tuple[list[Sentence], list[Removed]]:
    """Remove the sentences with unsupported claims.

    Returns:
        The sentences whose every claim follows from the facts, and the removed ones with their reasons.
    """
    kept, removed = [], []
    before = ""
    for sentence in sentences:
        reasons = unsupported_claims(sentence.text, facts, before)
        before = sentence.text
        if reasons:
            removed.append(Removed(sentence.text, tuple(reasons)))
        else:
            kept.append(sentence)
    return kept, removed


def ground_text(text: str, facts: Facts) -> tuple[str, list[Removed]]:
    """Remove the sentences with unsupported claims from a text that an engine or a person wrote.

    Returns:
        The text of the supported sentences, and the removed ones with their reasons.
    """
    kept, removed = [], []
    before = ""
    for sentence in split_sentences(text):
        reasons = unsupported_claims(sentence, facts, before)
        before = sentence
        if reasons:
            removed.append(Removed(sentence, tuple(reasons)))
        else:
            kept.append(sentence)
    return " ".join(kept), removed


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences; a full stop inside quotation marks does not end one."""
    sentences, start, inside, straight = [], 0, False, False
    for index, character in enumerate(text):
        if character == "“":
            inside = True
        elif character == "”":
            inside = False
        elif character == '"':
            straight = not straight
        closes = character in '”"' and text[index - 1 : index] in (".", "!", "?")
        if (character in ".!?" or closes) and not inside and not straight and text[index + 1 : index + 2] in ("", " "):
            sentences.append(text[start : index + 1].strip())
            start = index + 1
    return [sentence for sentence in (*sentences, text[start:].strip()) if sentence]


def unsupported_claims(sentence: str, facts: Facts, before: str = "") -> list[str]:
    """List the reasons why a sentence is not supported.

    Args:
        sentence: The sentence to check.
        facts: All that was measured of the clip.
        before: The sentence before it, which a "Then …" at its start refers to.

    Returns:
        Reasons as "kind: words"; empty if every claim follows from the facts.
    """
    return _ParsedSentence(sentence, facts).reasons(before)


def evidence_of(sentence: str, facts: Facts) -> list[list[float]]:
    """List where in the clip the claims of a sentence were measured: sorted [[start, end]] in seconds."""
    spans = {span for clause in _ParsedSentence(sentence, facts).clauses() for claim in clause.claims for span in claim}
    return [list(span) for span in sorted(spans)]


class _ParsedSentence:
    """One sentence, parsed into the claims that it makes and the words that no claim accounts for.

    Each step recognises one kind of claim, and blanks its words in `rest`, so that no later step reads them again.
    Blanks keep the length of `rest`: a position orders the elements, whichever step found them. The order of the steps
    is part of the grammar; the comments in `__init__` give the reasons.

    Attributes:
        facts: What the claims must follow from.
        rest: The sentence in its canonical wording, with the words of every recognised claim blanked.
        elements: (position, kind, value) of each claim, time and link found. The value of a "claim" is the list of
            spans where it was measured (empty if it is false), that of a "time", "moment" or "throughout" its numbers,
            and that of a "link" its word. A claim about colour, level and the like has no times, so no element.
        errors: Reasons to refuse the sentence that were found while parsing.
        claim_count: How many claims were found; a sentence without any is refused.
        utterance_of_quote: For the span of each quote, the span of the utterance that contains it.
        names_onset: Whether the sentence says that something begins: then "at 2.0 seconds" is the time of an onset.
    """

    def __init__(self, sentence: str, facts: Facts):
        self.facts = facts
        self.errors: list[str] = []
        self.elements: list[tuple[int, str, object]] = []
        self.claim_count = 0
        self.utterance_of_quote: dict[tuple[float, float], tuple[float, float]] = {}
        seen = _seen_phrases(facts)
        # The text may come from a model or from speech: it must not contain the marks that this parser inserts.
        sentence = _PRIVATE_USE.sub(" ", sentence)
        # Take writing and quotes first: the words inside them are not claims.
        sentence = self._take_written(sentence, facts)
        quotes = [curly or plain for curly, plain in _QUOTE.findall(sentence)]
        sentence = _QUOTE.sub(" \ue000 ", sentence).lower()
        # Mark the seen phrases before `canonical`, which could change their words.
        for at, one in enumerate(seen):
            sentence = one.pattern.sub(chr(_FIRST_SEEN_MARK + at), sentence)
        self.rest = canonical(sentence)
        self._take_seen(seen)
        if re.search('[“”"]', self.rest):
            self.errors.append("quote: a quotation mark without its pair")
        self._take_quotes(quotes)
        self.names_onset = re.search(r"\b(?:begin|start|come)s?\b", self.rest) is not None
        for kind, pattern in (("time", _TIMES), ("moment", _MOMENT), ("throughout", _THROUGHOUT)):
            for match in self._take(pattern):
                when = tuple(map(float, match.groups()))
                self.elements.append((match.start(), kind, when))
                if kind == "time" and when[1] < when[0]:
                    self.errors.append(f"time: {match.group(0).strip()}")
        links = list(_LINK.finditer(self.rest))
        self.elements += [(match.start(), "link", match.group(1)) for match in links]
        # Take speakers before sounds, since "a voice" also names a sound. Take sounds before the other claims, since
        # "white noise" names no colour.
        self._take_claims(PEOPLE)
        self._take_sounds(bool(quotes))
        self._take_claims(CLAIMS)
        # Blank the links last: `_take_sounds` needs them to separate the names of sounds.
        self._take(_LINK)

    def reasons(self, before: str = "") -> list[str]:
        """List the reasons why the sentence is not supported; `before` is the sentence before it."""
        reasons = self.errors + self._time_and_order_errors(before) + self._unaccounted_words()
        if not self.claim_count and not reasons:
            reasons.append("empty: nothing measured is named")
        return reasons

    def clauses(self) -> list[_Clause]:
        """Group the claims into clauses, each with its own times, in the order of the sentence."""
        clauses = [_Clause()]
        items = sorted(self.elements, key=lambda item: item[0])
        times_first = (
            next((kind for _, kind, _ in items if kind != "link"), "") != "claim"
        )  # "From 1.0 to 2.0 seconds a dog barks": times come before their claims
        inverted_link = ""  # "After the music, a dog barks": the link applies to the second clause
        for at, kind, value in items:
            clause = clauses[-1]
            if kind == "link":
                assert isinstance(value, str)
                if clause.claims or clause.timed:
                    clauses.append(_Clause({"before": "then"}.get(value, value)))
                elif value in ("after", "before") and len(clauses) == 1:
                    inverted_link = {"after": "then", "before": "after"}[value]
                else:
                    clause.link = {"before": "then"}.get(value, value)
            elif kind == "claim":
                assert isinstance(value, list)
                if inverted_link and clause.claims and "," in self.rest[:at]:
                    clauses.append(_Clause(inverted_link))
                    inverted_link = ""
                elif clause.claims and clause.timed and not times_first:
                    clauses.append(_Clause())
                clauses[-1].claims.append(value)
            else:
                if times_first and clause.claims and clause.timed:
                    clauses.append(_Clause())
                if kind == "throughout":
                    clauses[-1].throughout = True
                else:
                    assert isinstance(value, tuple)
                    clauses[-1].times.append((value[0], value[1] if kind == "time" else _MOMENTARY))
        for index in range(len(clauses) - 1, 0, -1):
            if (
                not clauses[index].claims and not clauses[index].link
            ):  # more times of one claim: "… and from 5.0 to 6.0 seconds"
                clauses[index - 1].times += clauses[index].times
                del clauses[index]
        return clauses

    def _take(self, pattern: re.Pattern) -> list[re.Match]:
        """Blank all matches of a pattern in `rest`, and return the matches."""
        found = list(pattern.finditer(self.rest))
        for match in found:
            self._blank(match.start(), match.end())
        return found

    def _blank(self, start: int, end: int) -> None:
        self.rest = f"{self.rest[:start]}{' ' * (end - start)}{self.rest[end:]}"

    def _take_claims(self, known: list[tuple[re.Pattern, str, Holds]]) -> None:
        """Replace each match of a pattern in `rest` by spaces, and count it as a claim.

        Add "kind: words" to `errors` for a claim that the facts do not support.

        Args:
            known: (pattern, kind, test) of each claim.
        """
        for pattern, kind, test in known:
            for match in self._take(pattern):
                self.claim_count += 1
                if not holds(test, match, self.facts):
                    self.errors.append(f"{kind}: {match.group(0).strip()}")

    def _take_written(self, sentence: str, facts: Facts) -> str:
        """Return the sentence with each "The text “…” is shown" blanked.

        Record an error if an engine did not read that text in the pictures.
        """
        there = [one for one in facts.seen if one["kind"] == "text"]
        for match in reversed(list(_WRITTEN.finditer(sentence))):
            found = [one for one in there if normalise(one["text"]) == normalise(match.group(1))]
            self.claim_count += 1
            if not found:
                self.errors.append(f"text: {match.group(1)[:60]!r} was not read on the screen")
            self.elements.append((match.start(), "claim", [tuple(span) for one in found for span in one["spans"]]))
            sentence = f"{sentence[: match.start()]}{' ' * len(match.group(0))}{sentence[match.end() :]}"
        return sentence

    def _take_seen(self, seen: list["_SeenPhrase"]) -> None:
        """Blank the marks of the seen phrases in `rest`, and record each as a claim.

        A seen phrase is no evidence of a sound or of a speaker, so a sentence about hearing must not contain one. An
        appearance must follow the subject that it describes.
        """
        marks = re.compile(f"[{chr(_FIRST_SEEN_MARK)}-{chr(_FIRST_SEEN_MARK + len(seen))}]")
        heard = _HEARING.search(self.rest)
        last: set[int] = set()
        for match in self._take(marks):
            one = seen[ord(match.group(0)) - _FIRST_SEEN_MARK]
            self.claim_count += 1
            self.elements.append((match.start(), "claim", one.spans))
            if heard:
                self.errors.append(f"sound: {one.words} was seen, not heard")
            elif one.appearance_of and not one.appearance_of & last:
                self.errors.append(f"appearance: {one.words}")
            last = one.subjects or last

    def _take_quotes(self, quotes: list[str]) -> None:
        """Blank the marks of quotes and the named speakers in `rest`, and record them as claims.

        Record an error if a quote was not said, or not by the speaker that the sentence names. `quotes` are the words
        of the quotes, in order.
        """
        places = [match.start() for match in self._take(re.compile("\ue000"))]
        who = [(match.start(), int(match.group(1) or _ORDINALS.get(match.group(2), 0))) for match in self._take(_WHO)]
        for at, said in zip(places, quotes, strict=False):
            self.claim_count += 1
            speaker = next((k for place, k in reversed(who) if place < at), who[0][1] if who else None)
            found = _quote_spans(said, self.facts)
            if not found:
                self.errors.append(f"quote: {said[:60]!r} was not said")
            elif speaker is not None and not (found := _quote_spans(said, self.facts, speaker)):
                self.errors.append(f"speaker: {said[:60]!r} was not said by speaker {speaker}")
            self.elements.append((at, "claim", found))
            self.utterance_of_quote |= {span: _utterance_span(*span, self.facts) for span in found}
        if who and not quotes:
            known = {item["speaker"]: item["spans"] for item in self.facts.transcript.get("speakers", [])}
            for at, speaker in who:
                self.claim_count += 1
                if speaker not in known:
                    self.errors.append(f"speakers: speaker {speaker}")
                self.elements.append((at, "claim", [tuple(span) for span in known.get(speaker, [])]))

    def _take_sounds(self, quoted: bool) -> None:
        """Blank the words in `rest` that name measured sounds, and record each sound as a claim.

        The words between two breaks (comma, "and", a time …) may name only one sound, or one sound and music. So if a
        dog barks and a cat meows, a word of "a dog meowing" remains, and the sentence is refused. `quoted`: whether the
        sentence has a quote. Its time is then that of the speech, and the word "speech" gets no element.
        """
        named = _audible_names(self.facts)
        ends = [match.start() for match in _BREAK.finditer(self.rest)]
        ends = sorted({0, *ends, *(at for at, kind, _ in self.elements if kind != "link"), len(self.rest)})
        for start, end in pairwise(ends):
            by_stem: dict[str, list[tuple[int, int]]] = {}
            for match in _PIECE.finditer(self.rest, start, end):
                if match.group(0) not in NEUTRAL_WORDS:
                    by_stem.setdefault(stem(match.group(0)), []).append(match.span())
            named_here: set[str] = set()
            while True:
                fitting = [
                    (len(way), name, way)
                    for name, (ways_of, _) in named.items()
                    if not named_here - {name, "music"} or name == "music"
                    for way in ways_of
                    if way <= by_stem.keys()
                ]
                if not fitting:
                    break
                most = max(fitting, key=lambda fit: fit[0])[2]
                names = sorted({name for _, name, way in fitting if way == most})
                named_here.add(names[0])
                self.claim_count += 1
                at = min(by_stem[one][0][0] for one in most)
                if not (names == ["speech"] and quoted):
                    self.elements.append((at, "claim", sorted({s for name in names for s in named[name][1]})))
                for one in most:
                    for first, last in by_stem.pop(one):
                        self._blank(first, last)

    def _time_and_order_errors(self, before: str) -> list[str]:
        """List the stated times, and the links between clauses, that contradict the measured times."""
        reasons = []
        clauses = self.clauses()
        timed = [clause for clause in clauses if clause.timed]
        if timed and not any(clause.claims for clause in clauses):
            return ["time: of nothing that was measured"]
        for clause in timed:
            for measured in clause.claims:
                there = measured + [
                    self.utterance_of_quote[span] for span in measured if span in self.utterance_of_quote
                ]
                reasons += [
                    f"time: from {s} to {e} seconds"
                    for s, e in clause.times
                    if not _time_fits(there, s, e, self.names_onset)
                ]
                if clause.throughout and sum(e - s for s, e in measured) < 0.85 * self.facts.seconds:
                    reasons.append("time: throughout")
            if not clause.claims:
                reasons.append("time: of nothing that was measured")
        if clauses[0].link and before:
            clauses = [_ParsedSentence(before, self.facts).clauses()[-1], *clauses]
        elif clauses[0].link:
            reasons.append(f"order: {clauses[0].link} nothing")
        for first, second in pairwise(clauses):
            if second.link and not _in_order(first, second):
                reasons.append(f"order: {second.link}")
        return reasons

    def _unaccounted_words(self) -> list[str]:
        """Return a reason to refuse the sentence, "kind: word", for each word of `rest` outside `NEUTRAL_WORDS`."""
        about_sound = re.search(r"\b(sound of|hear|heard|hears|sounds)\b", self.rest) is not None
        reasons = []
        for match in _WORD.finditer(self.rest):
            word = match.group(0)
            if word in NEUTRAL_WORDS:
                continue
            if word in FORBIDDEN:
                kind = "forbidden"
            elif word[0].isdigit() or word in NUMBERS:
                kind = "number"
            elif word in LANGUAGE_NAMES:
                kind = "language"
            else:
                kind = "sound" if about_sound else "unsupported"
            reasons.append(f"{kind}: {word}")
        return reasons


def _time_fits(measured: Spans, start: float, end: float, onset: bool) -> bool:
    """Return whether a stated time agrees with a measured span to within `_TOLERANCE_S`.

    A stated span must have the start and end of a measured one. A moment (`end` is `_MOMENTARY`) must lie within a
    measured span; with `onset`, it must be the start of one.
    """
    if end == _MOMENTARY and onset:
        return any(abs(start - s) <= _TOLERANCE_S for s, _ in measured)
    if end == _MOMENTARY:
        return any(s - _TOLERANCE_S <= start <= e + _TOLERANCE_S for s, e in measured)
    return any(abs(start - s) <= _TOLERANCE_S and abs(end - e) <= _TOLERANCE_S for s, e in measured)


def _in_order(first: _Clause, second: _Clause) -> bool:
    """Return whether the times of two clauses agree with the link of the second; False if a claim has no time.

    With "while", claims must overlap; with "then", the second must begin later, and with "after", earlier.
    """
    one, other = first.when(), second.when()
    if not one or not other or not all(one) or not all(other):
        return False
    pairs = [(a, b) for a in one for b in other]
    if second.link == "while":
        return all(any(s < f and g < e for s, e in a for g, f in b) for a, b in pairs)
    sign = 1 if second.link == "then" else -1
    return all(any(sign * (g - s) > 0 for s, _ in a for g, _ in b) for a, b in pairs)


def _quote_spans(quoted: str, facts: Facts, speaker: int | None = None) -> Spans:
    """Find every span, in seconds, in which exactly these words were said in a row (by `speaker`, if given)."""
    words = facts.transcript.get("words", [])
    spoken = [
        (token if word.get("quotable", True) else "", index)  # no quote may include a word of low confidence
        for index, word in enumerate(words)
        for token in normalise(word["word"])
    ]
    wanted = normalise(quoted)
    if not wanted:
        return []
    return [
        (words[spoken[at][1]]["start"], words[spoken[at + len(wanted) - 1][1]]["end"])
        for at in range(len(spoken) - len(wanted) + 1)
        if [token for token, _ in spoken[at : at + len(wanted)]] == wanted
        and (speaker is None or all(words[i].get("speaker") == speaker for _, i in spoken[at : at + len(wanted)]))
    ]


def _utterance_span(start_s: float, end_s: float, facts: Facts) -> tuple[float, float]:
    """Return the start and end, in seconds, of the utterance that contains a quote.

    An utterance can be longer than its quote, because it also has the words that are too uncertain to be quoted.
    """
    words = facts.transcript["words"]
    spans = [(words[first]["start"], words[last - 1]["end"]) for first, last in find_utterances(words)]
    starts = [s for s, e in spans if s <= start_s <= e]
    ends = [e for s, e in spans if s <= end_s <= e]
    return starts[0] if starts else start_s, ends[-1] if ends else end_s


@dataclass
class _SeenPhrase:
    """A seen phrase that a sentence may contain.

    Attributes:
        words: The phrase in lower case, without its article.
        spans: When it is seen, in seconds.
        subjects: Numbers of the subjects that it names.
        appearance_of: Numbers of the subjects whose appearance it describes.
    """

    words: str
    spans: Spans = field(default_factory=list)
    subjects: set[int] = field(default_factory=set)
    appearance_of: set[int] = field(default_factory=set)

    @property
    def pattern(self) -> re.Pattern:
        """Pattern that matches the words, but not inside a longer word."""
        return re.compile(rf"(?<!\w){re.escape(self.words)}(?!\w)")


def _seen_phrases(facts: Facts) -> list[_SeenPhrase]:
    """List the seen phrases that a sentence may contain, longest first.

    Articles are removed, so that a sentence may use "a" or "the".
    """
    found: dict[str, _SeenPhrase] = {}
    for one in facts.seen:
        if one["kind"] != "text":
            words = re.sub(r"^(?:a|an|the) ", "", one["text"].lower())
            named = found.setdefault(words, _SeenPhrase(words))
            named.spans += [tuple(span) for span in one["spans"]]
            if one["subject"] is not None:
                (named.subjects if one["kind"] == "subject" else named.appearance_of).add(one["subject"])
    return sorted(found.values(), key=lambda one: (-len(one.words), one.words))


def _audible_names(facts: Facts) -> dict[str, tuple[frozenset[frozenset[str]], Spans]]:
    """Return {sound: (the sets of word stems that name it, its spans in seconds)} for the sounds that may be named."""
    heard = {name: (ways_to_name(name), spans(tags)) for name, tags in nameable_sounds(facts.tags).items()}
    if music := [tag for tag in facts.tags if tag.label in MUSIC]:
        heard["music"] = (ways_to_name("music"), spans(music))
    words = [word for word in facts.transcript.get("words", []) if not word.get("doubted")]
    voiced = facts.transcript.get("voiced", [])
    speech = frozenset(frozenset({stem(word)}) for word in _SPEECH_WORDS)
    if words:
        heard["speech"] = (speech, [(words[0]["start"], words[-1]["end"])])
    elif voiced and any(tag.label in SPEECH for tag in facts.tags):
        heard["speech"] = (speech, [(start, end) for start, end in voiced])
    return heard
