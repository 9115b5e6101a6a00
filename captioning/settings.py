"""Settings of the caption stage."""

from typing import Literal

from pydantic import Field

from data_prep.settings import Settings


class SpeakerSettings(Settings):
    """How voices are told apart."""

    weights: str = Field(
        default="package:resemblyzer",
        description="package:resemblyzer or a checkpoint of its form; pyannote:FOLDER (or hub id) for a pyannote "
        'diarization pipeline; "" tells no speakers apart',
    )
    most: int = Field(default=4, ge=1, description="speakers told apart in a clip (not pyannote)")
    min_ratio: float = Field(
        default=1.2, ge=1, description="distance between voices over distance within one, where they take turns"
    )
    sure_ratio: float = Field(default=2.0, ge=1, description="the same, where nobody speaks again")
    min_seconds: float = Field(
        default=1.0, ge=0, description="who speaks less in a clip is no speaker of their own (not pyannote)"
    )


class TranscribeSettings(Settings):
    """Which Whisper, where it runs, and what of its text is believed."""

    whisper: str = Field(
        default="package:whisper-base",
        description="Whisper weights in CTranslate2 form: package:whisper-base, package:whisper-tiny-en, a folder, "
        "or a hub id",
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where Whisper runs")
    compute_type: str = Field(
        default="int8", description="CTranslate2 arithmetic: int8, int8_float16, float16, float32"
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 takes OMP_NUM_THREADS")
    batch_size: int = Field(default=1, ge=1, description="30 s windows per pass of the model; more pays on a GPU")
    beam_size: int = Field(default=5, ge=1, description="beams kept while decoding")
    speakers: SpeakerSettings = Field(default=SpeakerSettings(), description="who speaks")
    voice_threshold: float = Field(
        default=0.5, gt=0, lt=1, description="Silero speech probability that counts as voice"
    )
    min_language_probability: float = Field(
        default=0.5, ge=0, le=1, description="text in a language less certain than this is removed"
    )
    min_log_probability: float = Field(
        default=-0.4, description="text whose mean token log-probability (natural) is below is removed"
    )
    min_word_confidence: float = Field(
        default=0.5, ge=0, le=1, description="a word less certain than this is in no text, and ends its quote"
    )
    max_no_speech_probability: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Whisper's own no-speech probability; above it, text must be twice as likely",
    )
    max_compression_ratio: float = Field(
        default=2.4, gt=0, description="text that zlib shrinks more than this is removed"
    )
    max_words_per_second: float = Field(default=8.0, gt=0, description="text faster than this (voiced time) is removed")


class CaptionSettings(Settings):
    """What the caption stage listens with and how much of it is told."""

    transcribe: TranscribeSettings = Field(default=TranscribeSettings(), description="speech to text")
    tagger: str = Field(
        default="package:yamnet",
        description="the network that tagged the sounds, asked again when they begin: package:yamnet or a folder",
    )
    min_tag_score: float = Field(
        default=0.5, ge=0, le=1, description="sound events scored below this are not mentioned"
    )
    max_sounds: int = Field(default=4, ge=0, description="kinds of sound named in a caption, the longest heard first")
    picture_fps: float = Field(default=8.0, gt=0, description="frames per second looked at")
    picture_width: int = Field(default=160, ge=64, description="pixels across of the frames looked at")
