"""Does a caption name only what is there? Every sentence is taken apart into claims, and each claim is tested.

A claim is a quote, a time, an order, a sound, a number of speakers, a colour, a language, a movement … It must follow
from the clip's `Facts`. What is left of the sentence once its claims are taken out may only hold words that claim
nothing. So an invented subject, an emotion or a guess is caught without being on a list; the lists only name the kind.
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

_TOLERANCE_S = 0.3  # between a time in a caption and the time that was measured
_MOMENTARY = -1.0  # stands for the end of a time that is a moment
_QUOTE = re.compile(r"“([^“”]*)”|\"([^\"]*)\"")
_WRITTEN = re.compile(r"\b[Tt]he (?:text|writing|words?) “([^“”]*)” (?:is|are) (?:shown|seen|visible)\b")
_SPEECH_WORDS = ("speech", "voice", "says", "say", "said", "speaking", "spoken", "speaks", "talking", "utters", "reads")
_HEARING = re.compile(rf"\ue000|\b(?:sounds?|heard?|hears|hearing|audible|music|{'|'.join(_SPEECH_WORDS)})\b")
_FIRST_SEEN_MARK = 0xE100  # the first of the characters that stand for what was seen, in a sentence that is read
_PRIVATE_USE = re.compile(
    "[\ue000-\uf8ff]"
)  # no letters of anybody's: here they stand for quotes and for what was seen
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
    """A sentence that was taken out, and each reason as "kind: words"."""

    text: str
    reasons: tuple[str, ...]


@dataclass
class _Clause:
    """Claims that share their times, and how they follow on the part before: "", "then", "after" or "while"."""

    link: str = ""
    claims: list[Spans] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    throughout: bool = False

    @property
    def timed(self) -> bool:
        return bool(self.times) or self.throughout

    def when(self) -> list[Spans]:
        """When each of its claims is said to be: at its own times, else wherever it was measured."""
        return [[(s, max(s, e)) for s, e in self.times]] if self.times else self.claims


def ground(sentences: list[Sentence], facts: Facts) -> tuple[list[Sentence], list[Removed]]:
    """The sentences whose every claim follows from the facts, and those that were taken out."""
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
    """As `ground`, for a caption as running text, whoever wrote it. "Then …" is checked against the sentence before."""
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
    """Sentences; what stands inside quotation marks ends none."""
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
    """Why a sentence is not supported, as "kind: words"; empty when every claim in it follows from the facts.

    Args:
        before: the sentence before it, which a "Then …" at its start follows on.
    """
    return _ParsedSentence(sentence, facts).reasons(before)


def evidence_of(sentence: str, facts: Facts) -> list[list[float]]:
    """Where in the clip the claims of a sentence were measured: [[start, end]] in seconds, ordered."""
    spans = {span for clause in _ParsedSentence(sentence, facts).clauses() for claim in clause.claims for span in claim}
    return [list(span) for span in sorted(spans)]


class _ParsedSentence:
    """One sentence: what it claims, where, and what of it no claim accounts for (`rest`, of unchanged length)."""

    def __init__(self, sentence: str, facts: Facts):
        self.facts = facts
        self.errors: list[str] = []
        self.elements: list[tuple[int, str, object]] = []  # where, what ("claim", "time", "throughout", "link"), value
        self.claim_count = 0
        self.utterance_of_quote: dict[
            tuple[float, float], tuple[float, float]
        ] = {}  # a quote's span → that of the talk it is in
        seen = _seen_phrases(facts)
        sentence = _PRIVATE_USE.sub(" ", sentence)
        sentence = self._take_written(sentence, facts)
        quotes = [curly or plain for curly, plain in _QUOTE.findall(sentence)]
        sentence = _QUOTE.sub(" \ue000 ", sentence).lower()
        for at, one in enumerate(seen):
            sentence = one.pattern.sub(chr(_FIRST_SEEN_MARK + at), sentence)
        self.rest = canonical(sentence)
        self._take_seen(seen)
        if re.search('[“”"]', self.rest):
            self.errors.append("quote: a quotation mark without its pair")
        self._take_quotes(quotes)
        self.onsets = re.search(r"\b(?:begin|start|come)s?\b", self.rest) is not None
        for kind, pattern in (("time", _TIMES), ("moment", _MOMENT), ("throughout", _THROUGHOUT)):
            for match in self._take(pattern):
                when = tuple(map(float, match.groups()))
                self.elements.append((match.start(), kind, when))
                if kind == "time" and when[1] < when[0]:
                    self.errors.append(f"time: {match.group(0).strip()}")
        links = list(_LINK.finditer(self.rest))
        self.elements += [(match.start(), "link", match.group(1)) for match in links]
        self._take_claims(PEOPLE)
        self._take_sounds(bool(quotes))
        self._take_claims(CLAIMS)
        for _ in self._take(_LINK):
            pass

    def reasons(self, before: str = "") -> list[str]:
        """Why the sentence is not supported."""
        reasons = self.errors + self._time_and_order_errors(before) + self._unaccounted_words()
        if not self.claim_count and not reasons:
            reasons.append("empty: nothing measured is named")
        return reasons

    def clauses(self) -> list[_Clause]:
        """The claims by the times that they share, in the order in which they are told."""
        clauses = [_Clause()]
        items = sorted(self.elements, key=lambda item: item[0])
        leading = next((kind for _, kind, _ in items if kind != "link"), "") != "claim"  # times before their claims
        turned = ""  # "After the music, a dog barks": the second part follows on the first
        for at, kind, value in items:
            clause = clauses[-1]
            if kind == "link":
                assert isinstance(value, str)
                if clause.claims or clause.timed:
                    clauses.append(_Clause({"before": "then"}.get(value, value)))
                elif value in ("after", "before") and len(clauses) == 1:
                    turned = {"after": "then", "before": "after"}[value]
                else:
                    clause.link = {"before": "then"}.get(value, value)
            elif kind == "claim":
                assert isinstance(value, list)
                if turned and clause.claims and "," in self.rest[:at]:
                    clauses.append(_Clause(turned))
                    turned = ""
                elif clause.claims and clause.timed and not leading:
                    clauses.append(_Clause())
                clauses[-1].claims.append(value)
            else:
                if leading and clause.claims and clause.timed:
                    clauses.append(_Clause())
                if kind == "throughout":
                    clauses[-1].throughout = True
                else:
                    assert isinstance(value, tuple)
                    clauses[-1].times.append((value[0], value[1] if kind == "time" else _MOMENTARY))
        for index in range(len(clauses) - 1, 0, -1):
            if not clauses[index].claims and not clauses[index].link:  # "… and from 5.0 to 6.0 seconds"
                clauses[index - 1].times += clauses[index].times
                del clauses[index]
        return clauses

    def _take(self, pattern: re.Pattern) -> list[re.Match]:
        """All matches, which are taken out of the rest."""
        found = list(pattern.finditer(self.rest))
        for match in found:
            self._blank(match.start(), match.end())
        return found

    def _blank(self, start: int, end: int) -> None:
        self.rest = f"{self.rest[:start]}{' ' * (end - start)}{self.rest[end:]}"

    def _take_claims(self, known: list[tuple[re.Pattern, str, Holds]]) -> None:
        for pattern, kind, test in known:
            for match in self._take(pattern):
                self.claim_count += 1
                if not holds(test, match, self.facts):
                    self.errors.append(f"{kind}: {match.group(0).strip()}")

    def _take_written(self, sentence: str, facts: Facts) -> str:
        """The sentence without its quotes of writing in the picture, each of which must be there."""
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
        """Takes out what was seen. It is no evidence of a sound or of who speaks, and one's looks are no other's."""
        marks = re.compile(f"[{chr(_FIRST_SEEN_MARK)}-{chr(_FIRST_SEEN_MARK + len(seen))}]")
        heard = _HEARING.search(self.rest)
        last: set[int] = set()
        for match in self._take(marks):
            one = seen[ord(match.group(0)) - _FIRST_SEEN_MARK]
            self.claim_count += 1
            self.elements.append((match.start(), "claim", one.spans))
            if heard:
                self.errors.append(f"sound: {one.words} was seen, not heard")
            elif one.looks_of and not one.looks_of & last:
                self.errors.append(f"appearance: {one.words}")
            last = one.subjects or last

    def _take_quotes(self, quotes: list[str]) -> None:
        """Each quote was said, and by whom the sentence says."""
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
        """Takes out what names a sound that was measured. A phrase names one sound: of "a dog meowing", where a dog
        barks and a cat meows, one word is left over."""
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
                    if not _time_fits(there, s, e, self.onsets)
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
        """Words that no fact stands behind, with the kind of thing that they claim where it is known."""
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
    """Whether something is there from start to end; for a moment, whether it begins or is there then."""
    if end == _MOMENTARY and onset:
        return any(abs(start - s) <= _TOLERANCE_S for s, _ in measured)
    if end == _MOMENTARY:
        return any(s - _TOLERANCE_S <= start <= e + _TOLERANCE_S for s, e in measured)
    return any(abs(start - s) <= _TOLERANCE_S and abs(end - e) <= _TOLERANCE_S for s, e in measured)


def _in_order(first: _Clause, second: _Clause) -> bool:
    """Whether what the second part tells stands to the first as its link says; of what has no time, it does not."""
    one, other = first.when(), second.when()
    if not one or not other or not all(one) or not all(other):
        return False
    pairs = [(a, b) for a in one for b in other]
    if second.link == "while":
        return all(any(s < f and g < e for s, e in a for g, f in b) for a, b in pairs)
    sign = 1 if second.link == "then" else -1
    return all(any(sign * (g - s) > 0 for s, _ in a for g, _ in b) for a, b in pairs)


def _quote_spans(quoted: str, facts: Facts, speaker: int | None = None) -> Spans:
    """When exactly these words were said (by that speaker), in this order and without a gap; every place."""
    words = facts.transcript.get("words", [])
    spoken = [
        (token if word.get("quotable", True) else "", index)  # no quote goes across a word that is not sure
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
    """When the talk that holds these words is heard; some of its words may be too unsure to be quoted."""
    words = facts.transcript["words"]
    spans = [(words[first]["start"], words[last - 1]["end"]) for first, last in find_utterances(words)]
    starts = [s for s, e in spans if s <= start_s <= e]
    ends = [e for s, e in spans if s <= end_s <= e]
    return starts[0] if starts else start_s, ends[-1] if ends else end_s


@dataclass
class _SeenPhrase:
    """A phrase that may be named as seen: when, the subjects that it names, and those whose looks it tells."""

    words: str
    spans: Spans = field(default_factory=list)
    subjects: set[int] = field(default_factory=set)
    looks_of: set[int] = field(default_factory=set)

    @property
    def pattern(self) -> re.Pattern:
        return re.compile(rf"(?<!\w){re.escape(self.words)}(?!\w)")


def _seen_phrases(facts: Facts) -> list[_SeenPhrase]:
    """What may be named as seen, in these words; the longest first. Another article names the same thing."""
    found: dict[str, _SeenPhrase] = {}
    for one in facts.seen:
        if one["kind"] != "text":
            words = re.sub(r"^(?:a|an|the) ", "", one["text"].lower())
            named = found.setdefault(words, _SeenPhrase(words))
            named.spans += [tuple(span) for span in one["spans"]]
            if one["subject"] is not None:
                (named.subjects if one["kind"] == "subject" else named.looks_of).add(one["subject"])
    return sorted(found.values(), key=lambda one: (-len(one.words), one.words))


def _audible_names(facts: Facts) -> dict[str, tuple[frozenset[frozenset[str]], Spans]]:
    """What may be named as heard: the ways_to_name to name it, and its spans."""
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
