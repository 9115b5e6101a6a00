"""Who speaks when: voices told apart by their embeddings, or by a pyannote pipeline where its weights are given.

The embedding is that of Wan et al. 2018 (Generalized End-to-End Loss, arXiv 1710.10467) as the package resemblyzer
trained it: a 3-layer LSTM over 40 mel bands, 256 numbers of unit length per 1.6 s. Voiced windows are clustered (Ward);
each moment goes to the speaker whose mean its windows are nearest to. Two speakers at once are told as one: only
pyannote knows overlap.
"""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captioning.settings import SpeakerSettings
from data_prep.packaged_weights import resolve
from model.mel import slaney_filterbank

RATE = 16_000  # Hz
Spans = list[tuple[float, float]]
Turn = tuple[float, float, int]  # start and end in seconds, speaker

_HOP, _FFT, _BANDS = 160, 400, 40  # samples, samples, mel bands
_WINDOW = 160  # mel frames of an embedding: 1.6 s
_STEP = 16  # mel frames between embeddings
_LEVEL_DB = -30.0  # a quieter voice is turned up to this before it is embedded
_TURN_STEP_S = 0.05
_BLUR_S = 0.3  # how far a window speaks for the moments around its middle
_PYANNOTE = "pyannote:"


class VoiceEncoder(nn.Module):
    """mel power (B, 160, 40) → embeddings (B, 256) of unit length. Names as in the published checkpoint."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(_BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.register_buffer("bank", slaney_filterbank(RATE, _FFT, _BANDS), persistent=False)
        self.register_buffer("window", torch.hann_window(_FFT), persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mel)
        return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)

    def mel(self, voice: Tensor) -> Tensor:
        """(N,) at 16 kHz → (1 + N // 160, 40) mel power; librosa's `melspectrogram` with 25 ms and 10 ms."""
        assert isinstance(self.window, Tensor)
        assert isinstance(self.bank, Tensor)
        spectrum = torch.stft(voice, _FFT, _HOP, window=self.window, pad_mode="constant", return_complex=True)
        return spectrum.abs().square().T @ self.bank


def load_encoder(weights: str) -> VoiceEncoder:
    """The encoder of `package:resemblyzer`, or of a checkpoint of its form.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    path = Path(resolve(weights))
    if not path.is_file():
        raise ValueError(
            f"transcribe.speakers.weights: no file {weights}; give package:resemblyzer, a checkpoint of its form, "
            'pyannote:FOLDER, or "" to tell no speakers apart'
        )
    state = torch.load(path, map_location="cpu", weights_only=True).get("model_state", {})
    encoder = VoiceEncoder()
    wanted = encoder.state_dict().keys()
    if not wanted <= state.keys():
        raise ValueError(f"transcribe.speakers.weights: {weights} lacks {sorted(wanted - state.keys())[0]}")
    encoder.load_state_dict({name: state[name] for name in wanted})
    return encoder.eval()


@torch.inference_mode()
def embed(encoder: VoiceEncoder, audio: np.ndarray, voiced: Spans, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the voiced spans of a clip, (N,) float32 at 16 kHz.

    Returns:
        (W, 256) embeddings and (W, 2) start and end of each in seconds; a short span gives one, of what there is.
    """
    level = np.sqrt(np.mean(audio**2)) if len(audio) else 0.0
    gain = max(1.0, 10 ** (_LEVEL_DB / 20) / max(float(level), 1e-5))
    mel = encoder.mel(torch.from_numpy(np.ascontiguousarray(audio * gain, np.float32)))
    patches, times = [], []
    for start, end in voiced:
        first, last = round(start * RATE / _HOP), min(len(mel), round(end * RATE / _HOP))
        for at in range(first, max(first + 1, last - _WINDOW + 1), _STEP):
            patch = mel[at : min(at + _WINDOW, last)]
            times.append((at * _HOP / RATE, min(at + _WINDOW, last) * _HOP / RATE))
            # The LSTM was trained on 1.6 s: less is repeated until it is as long.
            patches.append(patch.repeat(-(-_WINDOW // max(1, len(patch))), 1)[:_WINDOW])
    if not patches:
        return np.zeros((0, 256), np.float32), np.zeros((0, 2))
    found = [encoder(torch.stack(patches[at : at + batch])) for at in range(0, len(patches), batch)]
    return torch.cat(found).numpy(), np.array(times)


def cluster_voices(embeddings: np.ndarray, times: np.ndarray, settings: SpeakerSettings) -> np.ndarray:
    """Embeddings (W, 256) of windows (W, 2) → the speaker of each, 0, 1, …; all 0 where no two are surely two.

    Windows of one voice also fall into groups (vowels, loudness, a room), so a grouping is believed only where its
    groups are apart: windows that share no sound are on average `min_ratio` times as far from the others' as from their
    own; and where the voices come back, or are apart twice as much (`sure_ratio`).
    """
    from sklearn.cluster import AgglomerativeClustering  # seconds of imports, needed only where somebody speaks

    middle = times.mean(1)
    distinct = np.abs(middle[:, None] - middle[None]) > _WINDOW * _HOP / RATE
    distance = 1 - embeddings @ embeddings.T
    for count in range(min(settings.most, len(embeddings) // 2), 1, -1):
        groups = AgglomerativeClustering(count, linkage="ward").fit_predict(embeddings)
        least = np.bincount(groups).min() * _STEP * _HOP / RATE
        ratio = min(_separation(distance, distinct, groups, pair) for pair in combinations(range(count), 2))
        returns = int((np.diff(groups) != 0).sum()) - (count - 1)
        if least < settings.min_seconds:
            continue
        if ratio >= settings.sure_ratio or (ratio >= settings.min_ratio and returns >= 2):
            return groups
    return np.zeros(len(embeddings), int)


def _separation(distance: np.ndarray, distinct: np.ndarray, groups: np.ndarray, pair: tuple[int, int]) -> float:
    """Mean distance between two groups over that within them, of windows that share no sound; 0 if not known."""
    one, other = (groups == group for group in pair)
    across = distance[np.outer(one, other) & distinct]
    within = distance[(np.outer(one, one) | np.outer(other, other)) & distinct]
    return float(across.mean() / max(within.mean(), 1e-6)) if len(across) and len(within) else 0.0


class Speakers:
    """Who speaks when in a clip. Loads its weights when it is made.

    Raises:
        ValueError: the weights of the settings are not there or are something else.
    """

    def __init__(self, settings: SpeakerSettings):
        self.settings = settings
        self.turns: Callable[[np.ndarray, Spans], list[Turn]]
        if settings.weights.startswith(_PYANNOTE):
            self.turns = _load_pyannote(settings.weights.removeprefix(_PYANNOTE))
        else:
            self.encoder = load_encoder(settings.weights)
            self.turns = self._by_embedding

    def __call__(self, audio: np.ndarray, voiced: Spans) -> list[Turn]:
        """A mono clip, (N,) float32 at 16 kHz, and its voiced spans → turns in time, speakers numbered from 1 by who
        speaks first; [] where one voice only is told."""
        turns = sorted(self.turns(audio, voiced))
        order = list(dict.fromkeys(speaker for _, _, speaker in turns))
        return [(start, end, order.index(speaker) + 1) for start, end, speaker in turns] if len(order) > 1 else []

    def _by_embedding(self, audio: np.ndarray, voiced: Spans) -> list[Turn]:
        embeddings, times = embed(self.encoder, audio, voiced)
        if len(embeddings) < 4:
            return []
        groups = cluster_voices(embeddings, times, self.settings)
        if not groups.any():
            return []
        means = np.stack([embeddings[groups == group].mean(0) for group in range(groups.max() + 1)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        likeness = embeddings @ means.T
        middle = times.mean(1)
        turns: list[Turn] = []
        for start, end in voiced:
            at = np.arange(start, end, _TURN_STEP_S) + _TURN_STEP_S / 2
            near = np.exp(-0.5 * ((at[:, None] - middle[None]) / _BLUR_S) ** 2) + 1e-9
            speaker = (near @ likeness / near.sum(1, keepdims=True)).argmax(1)
            edges = [0, *(np.flatnonzero(np.diff(speaker)) + 1), len(at)]
            for first, last in pairwise(edges):
                begins = start + first * _TURN_STEP_S
                turns.append((begins, min(end, start + last * _TURN_STEP_S), int(speaker[first])))
        return turns


def _load_pyannote(name: str) -> Callable[[np.ndarray, Spans], list[Turn]]:
    """A pyannote diarization pipeline from a folder or a hub id."""
    from pyannote.audio import Pipeline

    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.exists():
        raise ValueError(f"transcribe.speakers.weights: no folder {name}; give one with a pyannote pipeline")
    try:
        pipeline = Pipeline.from_pretrained(str(folder) if folder.exists() else name)
    except Exception as error:  # whatever a hub or a checkpoint answers, the user's setting is what to mend
        raise ValueError(f"transcribe.speakers.weights: pyannote cannot load {name}: {error}") from error
    if pipeline is None:
        raise ValueError(f"transcribe.speakers.weights: pyannote finds no pipeline {name}")

    def turns(audio: np.ndarray, voiced: Spans) -> list[Turn]:
        if not voiced:
            return []
        found = pipeline({"waveform": torch.from_numpy(audio)[None], "sample_rate": RATE})
        found: Any = getattr(found, "speaker_diarization", found)  # pyannote 4 wraps the annotation
        labels = sorted(found.labels())
        return [(t.start, t.end, labels.index(label)) for t, _, label in found.itertracks(yield_label=True)]

    return turns
