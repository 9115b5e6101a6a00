"""A measured clip on its way to a caption: the next question to an engine, and how an answer changes the clip.

There are at most two questions: "look" (what is seen) and "tell" (write a caption from the facts, where an engine
writes it). If an answer is refused, the question is asked once more with the reason; a second refusal fails the clip.
The state is plain data, so that a clip can wait for its answer in a row of the dataflow.
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
# (JPEG files, phrases, picture numbers of each phrase) → one score per phrase
Score = Callable[[Sequence[bytes], Sequence[str], Sequence[Sequence[int]]], list[float]]
_PENDING_KEY = "pending"  # key in clip.caption while the clip waits for an answer
_MAX_UNTRAINED_TEXT = 2000  # characters of an untrained answer that are stored


@dataclass(frozen=True)
class CaptionRequest:
    """A clip, what was measured of it, and its next question.

    Attributes:
        clip: The clip as it came.
        picture: From `picture_statistics`.
        transcript: From `transcribe`.
        sound: From `levels`.
        tags: Sound events that a caption may mention.
        frames: The pictures for an engine; times are from the clip's start.
        question: The next question, "" once there is none.
        refused: Why the previous answer was refused, "" for a first question.
        seen: What is stored of the answers: see `Captioner`.
        removed: The sentences and phrases removed so far.
        voice: Mono (N,) float32 at 16 kHz, for an engine in this process that hears; not stored in a row.
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
        """Write the prompt of the next question."""
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
            score: Scores visual phrases against pictures, or None.
            untrained: The answer comes from random weights: store it, and state nothing of it.

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
        """Collect all that is known of the clip."""
        return Facts(
            seconds=self.sound["seconds"],
            picture=self.picture,
            transcript=self.transcript,
            sound=self.sound,
            tags=self.tags,
            seen=tuple(self.seen.get("phrases", ())),
        )

    def captioned(self, settings: CaptionSettings) -> Clip:
        """Compose the caption by rules, and check it. Fail the clip if no sentence is supported."""
        facts = self.facts()
        kept, removed = ground(compose(facts, settings.max_sounds), facts)
        return self._with_caption(kept, removed)

    def _after_look(self, seen: Seen, settings: CaptionSettings, score: Score | None) -> "CaptionRequest":
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
        """Store this request in the clip's `caption` as plain data, without `voice`."""
        state = {
            name: getattr(self, name) for name in ("picture", "transcript", "sound", "question", "refused", "seen")
        }
        state["tags"] = [asdict(tag) for tag in self.tags]
        state["removed"] = [[one.text, list(one.reasons)] for one in self.removed]
        state["frames"] = [[frame.time_s, base64.b64encode(frame.jpeg).decode()] for frame in self.frames]
        return replace(self.clip, caption={_PENDING_KEY: state})

    @classmethod
    def of_clip(cls, clip: Clip) -> "CaptionRequest | None":
        """Restore the request that `to_clip` stored, or return None for a clip that does not wait."""
        if _PENDING_KEY not in clip.caption:
            return None
        state = dict(clip.caption[_PENDING_KEY])
        tags = tuple(Tag(**tag) for tag in state.pop("tags"))
        removed = tuple(Removed(text, tuple(reasons)) for text, reasons in state.pop("removed"))
        frames = tuple(Frame(time_s, base64.b64decode(file)) for time_s, file in state.pop("frames"))
        return cls(replace(clip, caption={}), **state, tags=tags, removed=removed, frames=frames)


def _plain_facts(facts: Facts) -> dict[str, Any]:
    """List the facts for an engine as plain sentences, each of which the checker accepts."""
    kept, _ = ground(compose(facts, max_sounds=8), facts)
    return {"seconds": facts.seconds, "facts": [sentence.text for sentence in kept if LONG in sentence.variants]}
