"""Transcribe many short clips in one call of WhisperX, with the language and the word times of each window.

WhisperX merges voiced spans into windows of at most 30 s and decodes the windows in batches. But it takes one recording
per call, detects one language for it with an extra encoder pass, and takes word times from an aligner that it
downloads. A curated set has thousands of clips of a few seconds. So this module concatenates the clips of a call to one
recording, and keeps each window inside one clip. It gets language and word times (dynamic time warping over
cross-attention) from the same encoder pass as the words.

This module imports whisperx, pyannote and transformers, which takes seconds: import it where it is used.
"""

import contextlib
import sys
import warnings

import numpy as np

from captioning.hear.text_normalisation import UNSPACED
from captioning.hear.window import SAMPLE_RATE, Voiced, Window

with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
    warnings.simplefilter("ignore")
    import ctranslate2
    import whisperx.asr
    from faster_whisper.tokenizer import Tokenizer
    from whisperx.diarize import Segment as Span
    from whisperx.vads import Vad

_MAX_WINDOW_S = 29.0  # longest time from the start of a window's first voiced span to the end of its last
_PAD_S = 0.2  # margin around voiced spans: Whisper loses a word that starts at its window's first sample


class VoicedSpans(Vad):
    """The voice activity detector that WhisperX calls. It detects nothing, but returns spans that are known already.

    WhisperX's own detectors would download their weights.
    """

    def __init__(self):
        super().__init__(0.5)
        self.clips: list[tuple[int, list[Voiced]]] = []  # number of samples and voiced spans of each clip
        self.windows: list[Window] = []
        self.origins: list[int] = []  # first sample, in the recording, of each window's clip

    @staticmethod
    def preprocess_audio(audio):
        """Return the audio unchanged: the spans are known already."""
        return audio

    def __call__(self, recording, **_):
        """Group the spans of all clips into windows, and store them in `windows` and `origins`.

        Return the windows in the type that WhisperX expects.
        """
        self.windows.clear()
        self.origins.clear()
        first = 0
        for index, (samples, spans) in enumerate(self.clips):
            length = samples / SAMPLE_RATE
            for group in _group_spans(spans):
                start, end = max(0.0, group[0][0] - _PAD_S), min(length, group[-1][1] + _PAD_S)
                self.windows.append(Window(index, start, end, group))
                self.origins.append(first)
            first += samples
        return [Span(w.start, w.end, "UNKNOWN") for w in self.windows]  # pyright: ignore[reportArgumentType]

    def merge_chunks(self, segments, chunk_size, onset, offset=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the start and end of each window in the recording, in seconds. WhisperX expects merged spans here.

        WhisperX cuts the recording at `int(seconds * rate)`. Half a sample is added, so that rounding cannot move the
        cut: a clip gets the same samples, and so the same words, whichever other clips are in the call.
        """

        def seconds(origin: int, at_s: float) -> float:
            return (origin + round(at_s * SAMPLE_RATE) + 0.5) / SAMPLE_RATE

        return [
            {"start": seconds(origin, window.start), "end": seconds(origin, window.end), "segments": []}
            for origin, window in zip(self.origins, self.windows, strict=True)
        ]


def _group_spans(spans: list[Voiced]) -> list[list[Voiced]]:
    """Group the sorted voiced spans of a clip into windows of at most `_MAX_WINDOW_S`."""
    groups: list[list[Voiced]] = []
    for span in spans:
        if groups and span[1] - groups[-1][0][0] <= _MAX_WINDOW_S:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


class TimedWhisper(whisperx.asr.WhisperModel):
    """A Whisper model that writes language, words, word times and probabilities into each window of a batch.

    Attributes:
        windows: The windows of the current call, in the order in which WhisperX decodes them.
        filled: How many of them have their results.
    """

    windows: list[Window]
    filled: int

    def generate_segment_batched(self, features, tokenizer, options, encoder_output=None):
        """Decode the log-mel features (B, mels, 3000) of the next B windows, and write the results into `windows`."""
        batch = self.windows[self.filled : self.filled + len(features)]
        self.filled += len(batch)
        encoded = self.encode(features)
        if self.model.is_multilingual:
            for window, ranking in zip(batch, self.model.detect_language(encoded), strict=True):
                token, window.language_probability = ranking[0]
                window.language = token[2:-2]
        else:
            for window in batch:
                window.language = "en"
        groups: dict[str, list[int]] = {}
        for row, window in enumerate(batch):
            groups.setdefault(window.language, []).append(row)
        for language, rows in groups.items():
            part = encoded if len(groups) == 1 else _select_rows(encoded, rows)
            self._decode(part, [batch[row] for row in rows], language, options)
        return {"text": [w.text for w in batch], "avg_logprob": [w.log_probability for w in batch]}

    def _decode(self, encoded, windows: list[Window], language: str, options) -> None:
        """Decode windows of one language, given the encoder's output, and write the results into them."""
        tokenizer = Tokenizer(self.hf_tokenizer, self.model.is_multilingual, task="transcribe", language=language)
        prompt = self.get_prompt(tokenizer, [], without_timestamps=True)
        longest = max(window.end - window.start for window in windows)
        results = self.model.generate(
            encoded,
            [prompt] * len(windows),
            beam_size=options.beam_size,
            # Speech has fewer than 20 tokens per second: stop a decoder that is in a loop.
            max_length=min(self.max_length, len(prompt) + 20 + int(20 * longest)),
            suppress_blank=options.suppress_blank,
            suppress_tokens=options.suppress_tokens,
            return_scores=True,
            return_no_speech_prob=True,
        )
        tokens = [[token for token in result.sequences_ids[0] if token < tokenizer.eot] for result in results]
        for window, result, ids in zip(windows, results, tokens, strict=True):
            count = len(result.sequences_ids[0])
            window.text = tokenizer.decode(ids).strip()
            window.log_probability = result.scores[0] * count / (count + 1)
            window.no_speech_probability = result.no_speech_prob
        frames = [int(np.ceil(window.end - window.start)) * self.frames_per_second for window in windows]
        for window, words in zip(windows, self.find_alignment(tokenizer, tokens, encoded, frames), strict=True):  # pyright: ignore[reportArgumentType]
            window.words = _timed_words(words, window)


def _select_rows(encoded, rows: list[int]):
    """Return some rows (windows) of the encoder's output."""
    return ctranslate2.StorageView.from_array(
        np.ascontiguousarray(np.asarray(encoded.to_device(ctranslate2.Device.cpu))[rows])
    )


def _timed_words(alignment, window: Window) -> list[dict]:
    """Return the words of faster-whisper's alignment as `Window.words`: with punctuation, and times in the clip."""
    words: list[dict] = []
    for item in alignment:
        text, start, end = item["word"], window.start + float(item["start"]), window.start + float(item["end"])
        # Whisper splits "c'est" and "0.3". In a language with spaces, only text after a space begins a word.
        same = window.language not in UNSPACED and not text.startswith(" ")
        sounds = any(character.isalnum() for character in text)
        if words and text.strip() and (same or not sounds):
            words[-1]["word"] += text.strip()
            if sounds:  # not for punctuation: its time includes the pause after the word
                words[-1]["end"] = end
        elif text.strip():
            confidence = round(float(item["probability"]), 3)
            words.append({"word": text.strip(), "start": start, "end": end, "confidence": confidence})
    for word in words:
        start, end = min(word["start"], window.end), min(word["end"], window.end)
        # Whisper counts the pause before a word as a piece of the word: start the word where the voice begins.
        begins = next((low for low, high in window.voiced if low < end and high > start), start)
        word["start"], word["end"] = round(max(start, begins), 3), round(end, 3)
    return words


def load(model_path: str, *, device: str, compute_type: str, threads: int, beam_size: int):
    """Return a WhisperX pipeline that uses `TimedWhisper` and `VoicedSpans`; its prints go to standard error.

    Args:
        model_path: Folder or hub id of a CTranslate2 Whisper.
        device: "cpu" or "cuda".
        compute_type: CTranslate2's arithmetic, such as "int8".
        threads: CPU threads; 0 takes OMP_NUM_THREADS.
        beam_size: Beams while decoding.
    """
    model = TimedWhisper(model_path, device=device, compute_type=compute_type, cpu_threads=threads)
    with contextlib.redirect_stdout(sys.stderr):
        return whisperx.asr.load_model(
            model_path,
            device,
            compute_type=compute_type,
            model=model,
            vad_model=VoicedSpans(),
            language="en",  # saves WhisperX's encoder pass for the language; `TimedWhisper` detects it per window
            asr_options={"beam_size": beam_size},
        )


def listen(pipeline, clips: list[np.ndarray], voiced: list[list[Voiced]], batch_size: int) -> list[Window]:
    """Transcribe the voiced spans of clips.

    Args:
        pipeline: The pipeline from `load`.
        clips: Mono clips, each (N,) float32 at 16 kHz.
        voiced: The voiced spans of each clip in seconds.
        batch_size: Windows per pass of the model.

    Returns:
        The windows of all clips, in order.
    """
    vad, model = pipeline.vad_model, pipeline.model
    vad.clips = [(len(audio), spans) for audio, spans in zip(clips, voiced, strict=True)]
    model.windows, model.filled = vad.windows, 0
    with contextlib.redirect_stdout(sys.stderr):
        pipeline.transcribe(np.concatenate(clips), batch_size=batch_size, language="en", task="transcribe")
    assert model.filled == len(vad.windows)
    return list(vad.windows)
