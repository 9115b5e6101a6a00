"""Further measurements of kept clips, which no rule reads: loudness, fingerprints, and scores that settings turn on.

Loudness and fingerprints cost about 0.6 ms per second of clip and are always measured. The others run a network or
decode frames, which takes longer than all other steps of curation together, so they are off by default.
"""

import numpy as np

from data_prep.clip import Clip
from data_prep.curation.near_duplicates import sound_hash, to_text
from data_prep.media.decode import decode_video, span
from data_prep.scores.active_speaker import FPS, LEAST_VOICE, SIZE, load_scorer, speaker_scores
from data_prep.scores.av_sync import agreement, motion
from data_prep.scores.loudness import loudness
from data_prep.scores.picture_quality import PICTURES, PictureQuality
from data_prep.scores.sound import RATE, onset_times
from data_prep.scores.speech_quality import load_speech_quality, speech_quality
from data_prep.scores.voice_activity import RATE as VOICE_RATE
from data_prep.settings import KeptClipScoreSettings


class KeptClipScorer:
    """A callable that measures kept clips; it keeps the networks that the settings name.

    Args:
        settings: which scores to measure.

    Raises:
        ValueError: weights or a scorer that the settings name do not exist.
    """

    def __init__(self, settings: KeptClipScoreSettings) -> None:
        self.settings = settings
        self.speech_network = load_speech_quality(settings.speech_quality) if settings.speech_quality else ""
        self.speaker = (
            load_scorer(settings.active_speaker, settings.active_speaker_weights) if settings.active_speaker else None
        )
        self.clip_model = (
            PictureQuality(settings.picture_quality, settings.picture_quality_weights)
            if settings.picture_quality
            else None
        )

    def __call__(
        self, clip: Clip, pictures: list[int], sound: np.ndarray, mono: np.ndarray, voiced: np.ndarray
    ) -> None:
        """Measure a kept clip; add the scores to `clip.scores` and the fingerprints to `clip.info`.

        Args:
            clip: a kept clip with its media.
            pictures: hashes of its key frames, from `picture_hashes`.
            sound: its (2, N) samples at 32 kHz.
            mono: its (M,) samples at 16 kHz.
            voiced: probability of speech in each 32 ms, (⌈M / 512⌉,).
        """
        in_s, out_s = span(clip)
        scores = {"loudness_lufs": loudness(sound, RATE)}
        clip.info["sound_hash"] = f"{sound_hash(mono, VOICE_RATE):016x}"
        clip.info["picture_hashes"] = [f"{value:016x}" for value in pictures]
        if self.speech_network:
            scores |= speech_quality(mono, voiced, self.speech_network)
        if self.settings.av_agreement:
            times, moving = motion(clip.media, in_s, out_s)
            scores |= agreement(onset_times(sound) + in_s, times, moving)
        if self.speaker is not None and clip.scores.get("voice_ratio", 0.0) >= LEAST_VOICE:
            frames, _ = decode_video(clip.media, in_s, out_s, fps=FPS, size=SIZE)
            scores |= speaker_scores(self.speaker, frames, mono)
        if self.clip_model is not None:
            frames, _ = decode_video(clip.media, in_s, out_s, max_frames=PICTURES)
            if len(frames):
                seen, embedding = self.clip_model(list(frames))
                scores |= seen
                if not self.clip_model.untrained:
                    clip.info["picture_embedding"] = to_text(embedding)
        clip.scores |= scores
