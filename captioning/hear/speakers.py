"""Who speaks when: speaker diarization by clustering voice embeddings, or by a pyannote pipeline if one is given.

The package resemblyzer has the weights of the embedding (Wan et al. 2018, Generalized End-to-End Loss, arXiv
1710.10467): a 3-layer LSTM over 40 mel bands gives a unit vector of 256 numbers for a window of 1.6 s. The windows of
the voiced spans are clustered (Ward), and each cluster is a speaker. Each moment is assigned to the speaker whose mean
embedding is nearest to the windows around it. Two people who speak at once count as one: only pyannote detects overlap.
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
_WINDOW = 160  # mel frames per embedding: 1.6 s
_STEP = 16  # mel frames between embeddings
_LEVEL_DB = -30.0  # a quieter voice is amplified to this level before it is embedded
_TURN_STEP_S = 0.05  # time resolution of turns
_BLUR_S = 0.3  # a window's weight for a moment is a Gaussian of their distance with this standard deviation
_PYANNOTE = "pyannote:"


class VoiceEncoder(nn.Module):
    """A network that embeds windows of speech: windows of the same voice have similar embeddings.

    The parameter names are those of resemblyzer's checkpoint.
    """

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(_BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.register_buffer("bank", slaney_filterbank(RATE, _FFT, _BANDS), persistent=False)
        self.register_buffer("window", torch.hann_window(_FFT), persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Embed mel power (B, 160, 40) as unit vectors (B, 256)."""
        _, (hidden, _) = self.lstm(mel)
        return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)

    def mel(self, voice: Tensor) -> Tensor:
        """Compute mel power (1 + N // 160, 40) of a voice (N,) at 16 kHz.

        Equal to librosa's `melspectrogram` with windows of 25 ms every 10 ms.
        """
        assert isinstance(self.window, Tensor)
        assert isinstance(self.bank, Tensor)
        spectrum = torch.stft(voice, _FFT, _HOP, window=self.window, pad_mode="constant", return_complex=True)
        return spectrum.abs().square().T @ self.bank


def load_encoder(weights: str) -> VoiceEncoder:
    """Load the encoder's weights from `package:resemblyzer`, or from a checkpoint file with the same keys.

    Raises:
        ValueError: There is no such file, or it lacks the encoder's keys.
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
    """Embed windows of 1.6 s of a clip's voiced spans, one every 0.16 s.

    Args:
        encoder: The voice encoder.
        audio: Mono (N,) float32 at 16 kHz.
        voiced: The voiced spans in seconds.
        batch: Windows per pass of the encoder.

    Returns:
        Unit vectors (W, 256), and the start and end of each window in seconds (W, 2). A span shorter than 1.6 s is
        one window.
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
            # The LSTM was trained on windows of 1.6 s: repeat a shorter patch to that length.
            patches.append(patch.repeat(-(-_WINDOW // max(1, len(patch))), 1)[:_WINDOW])
    if not patches:
        return np.zeros((0, 256), np.float32), np.zeros((0, 2))
    found = [encoder(torch.stack(patches[at : at + batch])) for at in range(0, len(patches), batch)]
    return torch.cat(found).numpy(), np.array(times)


def cluster_voices(embeddings: np.ndarray, times: np.ndarray, settings: SpeakerSettings) -> np.ndarray:
    """Assign each window to a speaker, with as many speakers as are clearly distinct.

    The windows of one voice form clusters too (vowels, loudness, room). So a clustering is accepted only if its
    clusters are well separated: for windows that do not overlap in time, the mean distance between any two clusters is
    at least `min_ratio` times the mean distance within them. In addition, earlier speakers must speak again at least
    twice, or the ratio must reach `sure_ratio`. Each cluster must have `min_seconds` of speech.

    Args:
        embeddings: Unit vectors (W, 256).
        times: Start and end of each window in seconds (W, 2).
        settings: The limits of the clustering.

    Returns:
        The speaker of each window (W,), from 0; all 0 if no two speakers are clearly distinct.
    """
    from sklearn.cluster import AgglomerativeClustering  # takes seconds to import: only when somebody speaks

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
    """Return the mean distance between two groups of windows, divided by the mean distance within the groups.

    Args:
        distance: (W, W), the distance of each two windows.
        distinct: (W, W) bool, True for two windows that do not overlap in time; only these count.
        groups: (W,), the group of each window.
        pair: The two groups.

    Returns:
        The ratio; 0 if no two windows count.
    """
    one, other = (groups == group for group in pair)
    across = distance[np.outer(one, other) & distinct]
    within = distance[(np.outer(one, one) | np.outer(other, other)) & distinct]
    return float(across.mean() / max(within.mean(), 1e-6)) if len(across) and len(within) else 0.0


class Speakers:
    """Speaker diarization: it finds who speaks when in a clip. The constructor loads the weights.

    Raises:
        ValueError: The weights of the settings are missing, or are of another model.
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
        """Find who speaks when.

        Args:
            audio: Mono (N,) float32 at 16 kHz.
            voiced: The clip's voiced spans in seconds.

        Returns:
            Turns in order of time; speakers are numbered from 1 in the order in which they first speak. [] if only one
            speaker is found.
        """
        turns = sorted(self.turns(audio, voiced))
        order = list(dict.fromkeys(speaker for _, _, speaker in turns))
        return [(start, end, order.index(speaker) + 1) for start, end, speaker in turns] if len(order) > 1 else []

    def _by_embedding(self, audio: np.ndarray, voiced: Spans) -> list[Turn]:
        """Find the turns with the voice encoder; [] if only one speaker is found. Speakers are numbered from 0."""
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
    """Load a pyannote diarization pipeline from a folder or a hub id.

    Returns:
        A function (mono audio (N,) at 16 kHz, voiced spans) → turns.
    """
    from pyannote.audio import Pipeline

    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.exists():
        raise ValueError(f"transcribe.speakers.weights: no folder {name}; give one with a pyannote pipeline")
    try:
        pipeline = Pipeline.from_pretrained(str(folder) if folder.exists() else name)
    except Exception as error:  # any error of a hub or checkpoint: name the setting that the user must fix
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
