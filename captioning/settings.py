"""Settings of the caption stage."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.settings import LocalPath, Settings


class SpeakerSettings(Settings):
    """How speakers are told apart (diarization)."""

    weights: LocalPath = Field(
        default="package:resemblyzer",
        description="package:resemblyzer or a checkpoint of its form; pyannote:FOLDER (or hub id) for a pyannote "
        'diarization pipeline; "": speakers are not told apart',
    )
    most: int = Field(default=4, ge=1, description="speakers in a clip at most (not pyannote)")
    min_ratio: float = Field(
        default=1.2,
        ge=1,
        description="least ratio of the distance between voices to that within a voice, where speakers alternate",
    )
    sure_ratio: float = Field(default=2.0, ge=1, description="the same ratio, where no speaker speaks a second time")
    min_seconds: float = Field(
        default=1.0, ge=0, description="a voice with less speech is not counted as a speaker, seconds (not pyannote)"
    )


class TranscribeSettings(Settings):
    """Which Whisper model transcribes, where it runs, and how certain its text must be."""

    whisper: LocalPath = Field(
        default="package:whisper-base",
        description="Whisper weights in CTranslate2 form: package:whisper-base, package:whisper-tiny-en, a folder, "
        "or a hub id",
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where Whisper runs")
    compute_type: str = Field(
        default="int8", description="CTranslate2 arithmetic: int8, int8_float16, float16, float32"
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 takes OMP_NUM_THREADS")
    batch_size: int = Field(default=1, ge=1, description="30 s windows per forward pass; more is faster on a GPU")
    beam_size: int = Field(default=5, ge=1, description="beams kept while decoding")
    speakers: SpeakerSettings = Field(default=SpeakerSettings(), description="which speaker says what")
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
        default=0.5, ge=0, le=1, description="a word less certain than this is left out and ends its quote"
    )
    min_quote_confidence: float = Field(
        default=0.65,
        ge=0,
        le=1,
        description="a word less certain than this is not quoted, and its neighbours may have half its uncertainty",
    )
    max_no_speech_probability: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Whisper's no-speech probability; above it, text must be twice as likely",
    )
    max_compression_ratio: float = Field(
        default=2.4,
        gt=0,
        description="text that zlib compresses by a larger ratio is removed, because it repeats itself",
    )
    max_words_per_second: float = Field(
        default=8.0, gt=0, description="faster text is removed, words per second of voice"
    )


class SeenSettings(Settings):
    """Which vision model describes a clip, what it is shown, and which of its answers are used."""

    engine: Literal["", "transformers", "vllm", "openai"] = Field(
        default="",
        description="transformers: in this process; vllm: Ray Data's LLM processor; openai: an OpenAI-compatible "
        "endpoint; '': no model, and only measured facts of the picture are used",
    )
    model: LocalPath = Field(
        default="", description="folder or hub id (transformers, vllm), or the endpoint's model name"
    )
    compose: Literal["rules", "engine"] = Field(
        default="rules", description="who writes the paragraph: fixed rules, or the engine; both are checked"
    )
    frames: int = Field(default=8, ge=1, le=64, description="pictures of a clip that are shown, at most")
    frame_width: int = Field(default=448, ge=64, description="pixels on the longer side of a picture")
    max_tokens: int = Field(default=768, ge=16, description="tokens of an answer at most")
    time_limit_s: float = Field(default=120.0, gt=0, description="time limit of an answer, seconds (not vllm)")
    device: str = Field(default="cpu", description="where transformers and open_clip run: cpu, cuda")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="arithmetic of transformers and vllm"
    )
    audio: bool = Field(
        default=True, description="also give the sound to a model that accepts it (transformers: Qwen Omni)"
    )
    endpoint: str = Field(default="", description="openai: base URL, such as http://localhost:8000/v1")
    key_variable: str = Field(default="OPENAI_API_KEY", description="openai: environment variable of the API key")
    attempts: int = Field(default=6, ge=1, description="openai: attempts per request while the server fails")
    concurrency: int = Field(default=8, ge=1, description="openai: concurrent requests per worker")
    requests_per_minute: float = Field(default=0.0, ge=0, description="openai: request rate limit per worker; 0: none")
    engine_options: dict[str, Any] = Field(
        default={}, description="vllm: engine arguments, such as tensor_parallel_size: 2 (in a recipe)"
    )
    workers: int = Field(default=1, ge=1, description="vllm: engines that run in parallel")
    clip: str = Field(default="", description="open_clip model that scores visual phrases; '': not scored")
    clip_weights: LocalPath = Field(
        default="", description=".safetensors file of that model; not for a model named hf-hub:ID"
    )
    min_clip_score: float = Field(
        default=0.2,
        ge=-1,
        le=1,
        description="a phrase whose cosine similarity with its best picture is lower is removed",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        """Raise ValueError if the engine lacks its model or endpoint, or if a setting needs an engine."""
        if self.engine and not self.model:
            raise ValueError(f"model: engine {self.engine} needs one; give a folder, a hub id or the endpoint's name")
        if self.engine == "openai" and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint: engine openai needs its base URL, such as http://localhost:8000/v1")
        if not self.engine and (self.compose == "engine" or self.clip):
            raise ValueError("engine: compose=engine and clip need one; give transformers, vllm or openai")
        return self


class CaptionSettings(Settings):
    """The models of the caption stage, and what is mentioned in a caption."""

    transcribe: TranscribeSettings = Field(default=TranscribeSettings(), description="speech to text")
    seen: SeenSettings = Field(default=SeenSettings(), description="vision model")
    tagger: LocalPath = Field(
        default="package:yamnet",
        description="the network that tagged the sounds, run again to find when they begin: package:yamnet or a folder",
    )
    min_tag_score: float = Field(
        default=0.5, ge=0, le=1, description="sound events scored below this are not mentioned"
    )
    max_sounds: int = Field(default=4, ge=0, description="kinds of sound named in a caption at most, the longest first")
    picture_fps: float = Field(default=8.0, gt=0, description="frames per second for the statistics of the picture")
    picture_width: int = Field(default=160, ge=64, description="width of those frames, pixels")
