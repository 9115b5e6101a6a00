"""Videos in which every frame shows its number and the sound shows its time, in any container and codec of PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

HEIGHT, WIDTH, BITS = 64, 128, 8


def numbered_frame(number: int) -> np.ndarray:
    """Draw (64, 128, 3) uint8: eight bars, white for each bit of the number that is set."""
    frame = np.full((HEIGHT, WIDTH, 3), 16, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            frame[:, bit * 16 : (bit + 1) * 16] = 235
    return frame


def number_of(frame: np.ndarray) -> int:
    """Read the number that a decoded frame shows."""
    width = frame.shape[1] // BITS
    middle = frame[frame.shape[0] // 2]
    return sum(
        1 << bit
        for bit in range(BITS)
        if middle[bit * width + width // 4 : (bit + 1) * width - width // 4].mean() > 128
    )


def noise_sound(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Make (2, N) float32 that never repeats: low-passed noise, the same in both channels."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(round(seconds * rate))
    spectrum = np.fft.rfft(white)
    spectrum[np.fft.rfftfreq(len(white), 1 / rate) > 3000] = 0
    sound = np.fft.irfft(spectrum, len(white))
    return np.tile(0.25 * sound / np.abs(sound).max(), (2, 1)).astype(np.float32)


def write(
    path: Path,
    frames: list[np.ndarray],
    sound: np.ndarray | None,
    *,
    times: list[Fraction] | None = None,
    fps: int = 25,
    rate: int = 48000,
    codecs: tuple[str, str] = ("libx264", "aac"),
    gop: int = 12,
    sound_late_s: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode a video; `times` gives the time of each frame in seconds (variable rate)."""
    with av.open(str(path), "w", options=options or {}) as out:
        video = out.add_stream(codecs[0], rate=fps, options={"g": str(gop), "threads": "1"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        base = Fraction(1, 9000)
        video.codec_context.time_base = base
        audio = out.add_stream(codecs[1], rate=rate, layout="stereo") if sound is not None else None
        assert audio is None or isinstance(audio, AudioStream)
        packets = []
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            at = times[index] if times else Fraction(index, fps)
            frame.pts, frame.time_base = round(at / base), base
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None and sound is not None:
            for start in range(0, sound.shape[1], 960):
                block = np.ascontiguousarray(sound[:, start : start + 960])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = start + round(sound_late_s * rate)
                packets += audio.encode(frame)
            packets += audio.encode(None)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        for packet in packets:
            out.mux(packet)
    return path


def lag_s(reference: np.ndarray, other: np.ndarray, rate: int, reach_s: float = 0.05) -> float:
    """Measure how much later `other` is than `reference`, seconds, at the correlation peak, below a sample."""
    size = 2 * max(len(reference), len(other))
    product = np.fft.irfft(np.conj(np.fft.rfft(reference, size)) * np.fft.rfft(other, size), size)
    reach = round(reach_s * rate)
    around = np.concatenate([product[-reach:], product[: reach + 1]])
    peak = int(around.argmax())
    before, at, after = around[peak - 1], around[peak], around[peak + 1]
    return (peak - reach + 0.5 * (before - after) / (before - 2 * at + after)) / rate
