"""Predict how clean speech sounds to listeners, with the network DNSMOS P.835 (Reddy, Gopal and Cutler 2022).

The network was trained on telephone calls, so it rates music in the background as bad, and a waterfall as noise. So it
processes only the nine seconds of a clip with the most speech, and no rule drops a clip for its scores.
"""

from pathlib import Path

import numpy as np

from data_prep.onnx_session import session
from data_prep.packaged_weights import resolve
from data_prep.scores.voice_activity import FRAME, RATE

WINDOW = 144_160  # samples at 16 kHz that the network takes: 9.01 s
LEAST_S = 1.0  # with less speech there is no score, seconds
# The published polynomials from the network's outputs to opinion scores from 1 to 5, highest power first.
_SIGNAL = (-0.08397278, 1.22083953, 0.0052439)
_BACKGROUND = (-0.13166888, 1.60915514, -0.39604546)
_OVERALL = (-0.06766283, 1.11546468, 0.04602535)


def load_speech_quality(weights: str) -> str:
    """Return the path of the network for `package:dnsmos`, or for the path of a `sig_bak_ovr.onnx`; it is not loaded.

    Raises:
        ValueError: the network does not exist.
    """
    path = Path(resolve(weights))
    if not path.is_file():
        raise ValueError(f"speech_quality {weights!r}: no such file; give package:dnsmos or the path of an .onnx file")
    return str(path)


def speech_quality(mono: np.ndarray, voiced: np.ndarray, network: str) -> dict[str, float]:
    """Predict the mean opinion scores (MOS) that listeners would give the speech.

    Args:
        mono: (N,) samples at 16 kHz.
        voiced: probability of speech in each 32 ms of `mono`, (V,).
        network: path of the network, from `load_speech_quality`.

    Returns:
        Scores from 1 to 5: `speech_signal_mos` (the voice alone), `speech_background_mos` (5: no background),
        `speech_overall_mos`. Empty where less than 1 s is speech.
    """
    speaking = voiced > 0.5
    if speaking.sum() * FRAME < LEAST_S * RATE:
        return {}
    frames = WINDOW // FRAME
    total = np.concatenate([[0], np.cumsum(speaking)])
    begins = np.arange(max(1, len(speaking) - frames + 1))
    best = int((total[np.minimum(begins + frames, len(speaking))] - total[begins]).argmax())
    heard = mono[best * FRAME : best * FRAME + WINDOW]
    heard = np.resize(heard, WINDOW).astype(np.float32)  # shorter sound is repeated, as the authors do
    run = session(network)
    (scores,) = np.asarray(run.run(None, {run.get_inputs()[0].name: np.clip(heard, -1, 1)[None]})[0])
    names = ("speech_signal_mos", "speech_background_mos", "speech_overall_mos")
    curves = (_SIGNAL, _BACKGROUND, _OVERALL)
    return {name: float(np.polyval(curve, score)) for name, curve, score in zip(names, curves, scores, strict=True)}
