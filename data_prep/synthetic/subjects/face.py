"""A face that speaks: its mouth opens with the loudness of the words, and takes the shape of their vowels."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import resample_poly

from data_prep.synthetic import sounds
from data_prep.synthetic.backgrounds import camera, landscape, room, studio, view
from data_prep.synthetic.canvas import COLOURS, brush, mixed
from data_prep.synthetic.sentences import SHORTEST, sentence
from data_prep.synthetic.shot import Event, Format, Shot, mixdown, side
from data_prep.synthetic.speech import MEN, WOMEN, Utterance, Word, speak

_SKINS = ((244, 208, 180), (226, 176, 140), (196, 140, 100), (150, 98, 68), (108, 70, 50))
_HAIR = {
    "black": (36, 30, 32),
    "brown": (92, 60, 38),
    "fair": (206, 164, 92),
    "red": (158, 72, 36),
    "grey": (150, 150, 154),
}
_PAUSE_S = 0.3  # between two sentences
_TRIES = 30  # number of sentences to try at most


def face(rng: np.random.Generator, form: Format, frames: int) -> Shot:
    """Make a shot of a speaker on the left, in the middle or on the right, with as many sentences as fit into it."""
    height, width = form.height, form.width
    woman = bool(rng.random() < 0.5)
    voice = str(rng.choice(WOMEN if woman else MEN))
    said, lead = _talk(rng, voice, frames / form.fps)
    span = round(0.14 * width)
    behind = (room, studio, studio, landscape)[rng.integers(4)](rng, height, width + span)
    offsets, panned = camera(rng, frames, span, 0.25)
    place = rng.uniform(0.22, 0.78) * width + span / 2
    tall = height * rng.uniform(0.30, 0.36)
    hair, skin = str(rng.choice(list(_HAIR))), _SKINS[rng.integers(len(_SKINS))]
    cloth = str(rng.choice(list(COLOURS)))
    glasses = bool(rng.random() < 0.25)

    track = np.zeros(form.samples(frames), np.float32)
    words: list[Word] = []
    wide = np.zeros(frames)
    for utterance, start in zip(said, lead, strict=True):
        voiced = resample_poly(utterance.samples, form.sample_rate, utterance.sample_rate).astype(np.float32)
        sounds.add(track, voiced, round(start * form.sample_rate))
        words += [Word(w.word, w.start_s + start, w.end_s + start) for w in utterance.words]
        for (at, name), (until, _) in zip(
            utterance.phonemes, [*utterance.phonemes[1:], (utterance.seconds, "")], strict=True
        ):
            first, last = round((at + start) * form.fps), round((until + start) * form.fps)
            wide[first : max(last, first + 1)] = _shape(name)
    opening = _envelope(track, frames, form)
    wide = gaussian_filter1d(wide, 1.0)
    blinks = _blinks(rng, frames, form.fps)
    sway = gaussian_filter1d(rng.standard_normal((2, frames + 40)), 9, axis=1)[:, 20 : 20 + frames] * tall * 0.12
    nod = gaussian_filter1d(opening, 3) * tall * 0.03
    x = place - offsets + sway[0]
    y = height * 0.47 + sway[1] * 0.5 + nod

    head = _Head(skin, _HAIR[hair], COLOURS[cloth], woman, glasses, bool(rng.random() < 0.4 and not woman))
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        frame = view(behind, float(offsets[i]), width)
        with brush(frame, x[i] - tall * 2.1, 0, x[i] + tall * 2.1, height) as b:
            head.draw(b, x[i], y[i], tall, height, opening[i], wide[i], blinks[i])
        pictures[i] = frame

    mouth = np.stack([x / width, (y + 0.52 * tall) / height], axis=1)
    dry = sounds.pan(track, mouth[:, 0], form.samples_per_frame)
    audio = mixdown(rng, form, dry, room_s=(0.2, 0.35), wet=(0.05, 0.12), peak=(0.55, 0.85), floor_db=-60)
    transcript = " ".join(u.text for u in said)
    who = "woman" if woman else "man"
    seen = (
        f"A drawn {who} with {hair} hair{' and glasses' * glasses} and a {cloth} top speaks "
        f"{side(float(mouth[0, 0]))}, in front of {behind.what}."
    ).replace("a orange", "an orange")
    x_at = np.interp([word.start_s * form.fps for word in words], np.arange(frames), mouth[:, 0])
    return Shot(
        "speech", "speech", pictures, audio, seen + f" {panned}" * bool(panned), f"The {who} says: “{transcript}”",
        events=[Event(w.start_s, f"says “{w.word}”", float(at)) for w, at in zip(words, x_at, strict=True)],
        words=words, transcript=transcript, places={"mouth": mouth},
    )  # fmt: skip


def _talk(rng, voice: str, seconds: float) -> tuple[list[Utterance], list[float]]:
    """Choose random sentences that fit into the shot. Return them, and the second at which each begins."""
    speed, pitch = float(rng.uniform(0.7, 0.9)), float(rng.uniform(0.93, 1.07))
    said: list[Utterance] = []
    starts: list[float] = []
    at = float(rng.uniform(0.1, 0.25))
    for attempt in range(_TRIES):
        last = attempt == _TRIES - 1 and not said
        utterance = speak(SHORTEST if last else sentence(rng), voice, speed, pitch)
        if at + utterance.seconds <= seconds - 0.05:
            said.append(utterance)
            starts.append(at)
            at += utterance.seconds + _PAUSE_S
        if at > seconds - 1.0:
            break
    assert said, f"no sentence fits into {seconds:.2f} s; the settings should not have allowed it"
    return said, starts


def _envelope(track: np.ndarray, frames: int, form: Format) -> np.ndarray:
    """Return how far the mouth is open on each frame, 0 to 1: from the RMS of the sound around the frame's time."""
    half = form.samples_per_frame * 0.5
    power = np.concatenate([[0.0], np.cumsum(track.astype(np.float64) ** 2)])
    centre = np.arange(frames) * form.samples_per_frame
    low = np.clip(centre - half, 0, len(track)).astype(int)
    high = np.clip(centre + half, 1, len(track)).astype(int)
    rms = np.sqrt((power[high] - power[low]) / np.maximum(high - low, 1))
    return np.clip(rms / max(float(np.percentile(rms, 95)), 1e-6), 0, 1) ** 0.7


def _shape(phoneme: str) -> float:
    """Return the shape of the lips for a phoneme: −1 round (oo), 0 neutral, 1 wide (ee)."""
    if phoneme in "uʊwɔOW":
        return -1.0
    return 1.0 if phoneme in "iɪeɛAsz" else 0.0


def _blinks(rng, frames: int, fps: float) -> np.ndarray:
    """Return how far the eyes are open on each frame, 0 to 1. They blink at random, every few seconds."""
    eyes = np.ones(frames)
    at = rng.uniform(0.3, 2.0) * fps
    while at < frames:
        eyes *= 1 - np.exp(-0.5 * ((np.arange(frames) - at) / (0.045 * fps)) ** 2)
        at += rng.uniform(1.6, 3.5) * fps
    return eyes


class _Head:
    """A drawn head with shoulders. The `t` of its methods is half the height of the head, in pixels."""

    def __init__(self, skin, hair, cloth, woman: bool, glasses: bool, beard: bool) -> None:
        self.skin, self.hair, self.cloth, self.woman, self.glasses, self.beard = (
            skin,
            hair,
            cloth,
            woman,
            glasses,
            beard,
        )
        self.dark = mixed(skin, (60, 20, 20), 0.28)

    def draw(self, b, x: float, y: float, t: float, height: int, opening: float, wide: float, eyes: float) -> None:
        """Draw the head with its centre at (x, y).

        Args:
            b: the brush.
            x: pixels.
            y: pixels.
            t: half the height of the head, pixels.
            height: unused.
            opening: of the mouth, 0 closed to 1.
            wide: shape of the lips, −1 round to 1 wide.
            eyes: 0 closed to 1 open.
        """
        hair, shade = self.hair, mixed(self.hair, (0, 0, 0), 0.35)
        if self.woman:
            b.rounded(x - 0.95 * t, y - 0.75 * t, x + 0.95 * t, y + 1.25 * t, 0.7 * t, shade)
        b.rounded(x - 0.34 * t, y + 0.6 * t, x + 0.34 * t, y + 1.45 * t, 0.15 * t, self.dark)
        b.ellipse(x, y + 2.25 * t, 1.75 * t, 1.1 * t, mixed(self.cloth, (0, 0, 0), 0.18))
        b.ellipse(x - 0.08 * t, y + 2.29 * t, 1.62 * t, 1.08 * t, self.cloth)
        b.chord(x, y + 1.2 * t, 0.42 * t, 0.28 * t, 0, 180, self.dark)
        for way in (-1, 1):
            b.ellipse(x + way * 0.8 * t, y + 0.05 * t, 0.15 * t, 0.22 * t, self.dark if way > 0 else self.skin)
        b.ellipse(x, y, 0.8 * t, 1.0 * t, self.dark)
        b.ellipse(x - 0.05 * t, y - 0.02 * t, 0.75 * t, 0.96 * t, self.skin)
        for way in (-1, 1):
            b.ellipse(x + way * 0.38 * t, y + 0.3 * t, 0.2 * t, 0.13 * t, (*mixed(self.skin, (214, 60, 60), 0.4), 70))
        if self.beard:
            b.chord(x, y + 0.1 * t, 0.8 * t, 0.93 * t, 25, 155, hair)
        b.chord(x, y - 0.12 * t, 0.86 * t, 0.95 * t, 195, 345, hair)
        b.ellipse(x - 0.3 * t, y - 0.62 * t, 0.42 * t, 0.26 * t, mixed(hair, (255, 255, 255), 0.10))
        if self.woman:
            for way in (-1, 1):
                b.rounded(
                    x + way * 0.8 * t - 0.15 * t, y - 0.4 * t, x + way * 0.8 * t + 0.15 * t, y + 1.1 * t, 0.14 * t, hair
                )
        for way in (-1, 1):
            self._eye(b, x + way * 0.32 * t, y - 0.08 * t, t, eyes)
            b.arc(x + way * 0.32 * t, y - 0.22 * t - 0.04 * opening * t, 0.2 * t, 0.12 * t, 200, 340, 0.06 * t, shade)
        b.arc(x, y + 0.17 * t, 0.1 * t, 0.12 * t, 20, 160, 0.05 * t, mixed(self.dark, (40, 0, 0), 0.25))
        self._mouth(b, x, y + 0.52 * t, t, opening, wide)

    def _eye(self, b, x: float, y: float, t: float, opened: float) -> None:
        b.ellipse(x, y, 0.15 * t, max(0.1 * t * opened, 0.02 * t), (250, 248, 244) if opened > 0.25 else (60, 40, 36))
        if opened > 0.25:
            b.ellipse(x, y, 0.08 * t, min(0.08, 0.12 * opened) * t, (70, 90, 110))
            b.ellipse(x, y, 0.045 * t, min(0.045, 0.1 * opened) * t, (16, 14, 18))
            b.ellipse(x - 0.025 * t, y - 0.03 * t, 0.02 * t, 0.02 * t, (255, 255, 255))
            b.chord(x, y, 0.155 * t, 0.105 * t * opened, 215, 325, mixed(self.dark, (40, 20, 20), 0.2))  # the lid
        if self.glasses:
            b.ellipse(x, y, 0.23 * t, 0.19 * t, (220, 236, 250, 40))
            b.ring(x, y, 0.25 * t, 0.21 * t, 0.045 * t, (34, 34, 46) if sum(self.skin) > 400 else (212, 176, 92))

    def _mouth(self, b, x: float, y: float, t: float, opening: float, wide: float) -> None:
        half, open_ = (0.25 + 0.05 * wide) * t, 0.02 * t + 0.22 * t * opening
        lips = (188, 74, 78) if self.woman else mixed(self.skin, (150, 50, 50), 0.55)
        b.ellipse(x, y, half + 0.045 * t, open_ + 0.055 * t, lips)
        b.ellipse(x, y, half, open_, (58, 16, 22))
        if opening > 0.25:
            cut = math.degrees(math.asin(0.45))
            b.chord(x, y, half * 0.94, open_ * 0.92, 180 + cut, 360 - cut, (246, 242, 234))
            b.chord(x, y + open_ * 0.15, half * 0.6, open_ * 0.8, 30, 150, (206, 96, 100))
