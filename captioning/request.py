"""The caption request: a measured clip, its next question to an engine, and how an answer changes it.

There are at most two questions: "look" asks what the pictures show, and "tell" asks for a caption of the facts (only if
an engine writes the captions). If an answer is refused, the question is asked once more with the reason; a second
refusal fails the clip. A request can be stored in its clip as plain data, so that the clip can wait for an answer in a
row of the dataflow.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from captioning.grounding.checker import Removed, evidence_of, ground, ground_text, split_sentences
from captioning.look import prompt
from captioning.look.answers import Refused, read
from captioning.look.frames import Frame
from captioning.look.phrases import filter_phrases, phrases_of
from captioning.look.schema import Seen, Told
from captioning.look.vision_engine import NoAnswer
from captioning.settings import CaptionSettings
from captioning.write.compose import LONG, MEDIUM, SHORT, Facts, Sentence, compose, text_of
from data_prep.clip import Clip, Tag

Question = Literal["look", "tell", ""]
# Function that scores how well phrases fit pictures: (JPEG files, phrases, the picture numbers of each phrase) → one
# score per phrase.
Score = Callable[[Sequence[bytes], Sequence[str], Sequence[Sequence[int]]], list[float]]
_PENDING_KEY = "pending"  # the key of `clip.caption` that stores a request, while the clip waits for an answer
_MAX_UNTRAINED_TEXT = 2000  # characters of an untrained answer that are stored


@dataclass(frozen=True)
class CaptionRequest:
    """A clip, what was measured of it, and its next question.

    Attributes:
        clip: The clip before captioning.
        picture: From `picture_statistics.describe`.
        transcript: From `transcribe.transcript`.
        sound: From `levels.measure`, and `av_agreement` from curation.
        tags: Sound events that a caption may mention.
        frames: The pictures for an engine; times are from the clip's start.
        question: The next question, "" once there is none.
        refused: Why the previous answer was refused, "" for a first question.
        seen: What is stored of the answers (see `Captioner.__call__`); empty before the first answer.
        removed: The sentences and phrases removed so far.
        voice: Mono (N,) float32 at 16 kHz, for an engine in this process that accepts sound; `to_clip` leaves it out.
    """

    clip: Clip
    picture: dict[str, Any]
    transcript: dict[str, Any]
    sound: dict[str, Any]
    tags: tuple[Tag, ...] = ()
    frames: tuple[Frame, ...] = ()
    question: Question = ""
    refused: str = ""
    seen: dict[str, Any] = field(default_factory=dict)
    removed: tuple[Removed, ...] = ()
    voice: np.ndarray | None = None

    def next_prompt(self, settings: CaptionSettings) -> prompt.Prompt:
        """Build the prompt of the current question; `question` must not be ""."""
        if self.question == "look":
            times = [frame.time_s for frame in self.frames]
            return prompt.look(
                [frame.jpeg for frame in self.frames], times, self.refused, self.voice if settings.seen.audio else None
            )
        return prompt.tell(_plain_facts(self.facts()), self.refused)

    def answered(
        self, answer: str | NoAnswer, settings: CaptionSettings, score: Score | None, *, untrained: bool = False
    ) -> "CaptionRequest | Clip":
        """Read the answer to the current question.

        Args:
            answer: The engine's text, or why there is none.
            settings: Settings of the caption stage.
            score: Function that scores phrases against pictures, or None for no scores.
            untrained: Whether the answer comes from random weights. Such an answer is stored, but the caption does not
                use it.

        Returns:
            The request with its next question ("" if there is none), or the clip with its caption or its failure.
        """
        if untrained:
            text = "" if isinstance(answer, NoAnswer) else answer[:_MAX_UNTRAINED_TEXT]
            return replace(self, question="", seen={"untrained": True, "answer": text})
        try:
            if isinstance(answer, NoAnswer):
                raise Refused(f"no answer: {answer}")
            if self.question == "look":
                return self._after_look(read(answer, Seen, len(self.frames)), settings, score)
            return self._after_tell(read(answer, Told), settings)
        except Refused as error:
            if self.refused:
                return self.clip.failed("caption", f"{self.question}: {error}, after {self.refused}")
            return replace(self, refused=str(error))

    def facts(self) -> Facts:
        """Collect what was measured and seen of the clip, for the composer and the checker."""
        return Facts(
            seconds=self.sound["seconds"],
            picture=self.picture,
            transcript=self.transcript,
            sound=self.sound,
            tags=self.tags,
            seen=tuple(self.seen.get("phrases", ())),
        )

    def captioned(self, settings: CaptionSettings) -> Clip:
        """Compose the caption by rules, and remove its unsupported sentences.

        Returns:
            The captioned clip, or the failed clip if a variant (short, medium, long) has no sentence left.
        """
        facts = self.facts()
        kept, removed = ground(compose(facts, settings.max_sounds), facts)
        return self._with_caption(kept, removed)

    def _after_look(self, seen: Seen, settings: CaptionSettings, score: Score | None) -> "CaptionRequest":
        """Store the accepted phrases of an answer to "look", and set the next question.

        A camera movement that differs from the measured one is recorded as a removed sentence.
        """
        files = [frame.jpeg for frame in self.frames]
        said = " ".join(word["word"] for word in self.transcript["words"])
        scores = None if score is None else lambda phrases, shown: score(files, phrases, shown)
        times = [frame.time_s for frame in self.frames]
        kept, out = filter_phrases(phrases_of(seen, times), said, scores, settings.seen.min_clip_score)
        removed = [Removed(phrase.text, (reason,)) for phrase, reason in out]
        measured = self.picture["camera"]
        if seen.camera not in ("unclear", measured):
            sentence = f"The camera {'is ' if seen.camera == 'static' else ''}{seen.camera}."
            removed.append(Removed(sentence, (f"camera: {seen.camera}",)))
        stored = {"model": settings.seen.model, "times": times, "phrases": [phrase.plain() for phrase in kept]}
        stored["removed"] = [phrase.plain() for phrase, _ in out]
        following: Question = "tell" if settings.seen.compose == "engine" else ""
        return replace(self, question=following, refused="", seen=stored, removed=(*self.removed, *removed))

    def _after_tell(self, written: Told, settings: CaptionSettings) -> "CaptionRequest | Clip":
        """Check the caption that an engine wrote.

        Returns:
            If a sentence of a first answer is unsupported, the request, so that the question is asked once more. Else
            the clip with the supported sentences as its caption, or the failed clip.
        """
        facts = self.facts()
        texts, removed = {}, []
        for variant in (SHORT, MEDIUM, LONG):
            texts[variant], out = ground_text(getattr(written, variant), facts)
            removed += [one for one in out if one not in removed]
        if removed and not self.refused:
            reasons = "; ".join(reason for one in removed for reason in one.reasons)
            return replace(self, refused=f"unsupported by the facts: {reasons[:1000]}")
        # A sentence that several variants share is one entry of the evidence.
        sentences: dict[str, Sentence] = {}
        for variant, text in texts.items():
            for one in split_sentences(text):
                before = sentences.get(one)
                variants = (*(before.variants if before else ()), variant)
                sentences[one] = Sentence(one, "written", {"spans": evidence_of(one, facts)}, variants)
        return self._with_caption(list(sentences.values()), removed)

    def _with_caption(self, sentences: list[Sentence], removed: list[Removed]) -> Clip:
        """Return the clip with a caption of these sentences, or the failed clip if a variant has no sentence."""
        texts = {variant: text_of(sentences, variant) for variant in (SHORT, MEDIUM, LONG)}
        if not all(texts.values()):
            return self.clip.failed("caption", "no sentence is supported by what was measured")
        caption = {
            "text": texts[MEDIUM],
            "short": texts[SHORT],
            "long": texts[LONG],
            "evidence": [
                {"sentence": s.text, "variants": list(s.variants), "source": s.source, "facts": s.facts}
                for s in sentences
            ],
            "transcript": self.transcript,
            "picture": self.picture,
            "sound": self.sound,
            "removed": [asdict(item) for item in (*self.removed, *removed)],
        }
        return replace(self.clip, caption=caption | ({"seen": self.seen} if self.seen else {}))

    def to_clip(self) -> Clip:
        """Return the clip with this request, without `voice`, stored in its `caption` as plain data."""
        state = {
            name: getattr(self, name) for name in ("picture", "transcript", "sound", "question", "refused", "seen")
        }
        state["tags"] = [asdict(tag) for tag in self.tags]
        state["removed"] = [[one.text, list(one.reasons)] for one in self.removed]
        state["frames"] = [[frame.time_s, base64.b64encode(frame.jpeg).decode()] for frame in self.frames]
        return replace(self.clip, caption={_PENDING_KEY: state})

    @classmethod
    def of_clip(cls, clip: Clip) -> "CaptionRequest | None":
        """Restore the request that `to_clip` stored in a clip; return None if the clip stores none."""
        if _PENDING_KEY not in clip.caption:
            return None
        state = dict(clip.caption[_PENDING_KEY])
        tags = tuple(Tag(**tag) for tag in state.pop("tags"))
        removed = tuple(Removed(text, tuple(reasons)) for text, reasons in state.pop("removed"))
        frames = tuple(Frame(time_s, base64.b64decode(file)) for time_s, file in state.pop("frames"))
        return cls(replace(clip, caption={}), **state, tags=tags, removed=removed, frames=frames)


def _plain_facts(facts: Facts) -> dict[str, Any]:
    """Return the facts for the question "tell": the clip's length in seconds, and the supported sentences."""
    kept, _ = ground(compose(facts, max_sounds=8), facts)
    return {"seconds": facts.seconds, "facts": [sentence.text for sentence in kept if LONG in sentence.variants]}
