"""Write frames and samples as an mp4 that every player opens: H.264 yuv420p with stereo AAC, index at the front.

The bytes are a function of the arguments alone: one encoder thread, no creation time, no encoder version. Sound is cut
or padded with silence to the picture's length, so that both streams end together (up to one AAC packet).
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import ColorRange, Colorspace

AUDIO_BLOCK = 1024  # samples of one AAC packet


def write_mp4(
    target: str | Path | BinaryIO,
    frames: Iterable[np.ndarray],
    fps: float,
    audio: np.ndarray | None,
    sample_rate: int,
    *,
    crf: int = 18,
) -> None:
    """Write frames, and sound if there is any, as one mp4.

    Args:
        target: a path (replaced atomically) or an open binary file.
        frames: (F, H, W, 3) uint8 RGB, as one array or frame by frame; H and W even.
        fps: frames per second; 23.976, 29.97 and 59.94 become exactly n·1000/1001.
        audio: (2, N) float32 in [-1, 1], starting with the first frame, or None for no audio stream.
        sample_rate: of the audio, Hz; a rate that AAC supports (16000, 24000, 44100, 48000 …).
        crf: H.264 quality, 0 (lossless) to 51.

    Raises:
        ValueError: there is no frame, its size is odd, or the sound is not (2, N).
    """
    if audio is not None and (audio.ndim != 2 or audio.shape[0] != 2):
        raise ValueError(f"audio of shape {audio.shape}: write_mp4 takes stereo, shape (2, samples)")
    folder = Path(target).parent if isinstance(target, str | Path) else None
    # The muxer moves the index to the front in a second pass over a real file, so write to a buffer through a file too.
    handle, name = tempfile.mkstemp(suffix=".mp4", prefix=".", dir=folder)
    os.close(handle)
    half = Path(name)
    try:
        _encode(half, frames, exact_rate(fps), audio, sample_rate, crf)
        if isinstance(target, str | Path):
            half.chmod(0o644)
            half.replace(target)
        else:
            with half.open("rb") as source:
                shutil.copyfileobj(source, target)
    finally:
        half.unlink(missing_ok=True)


def exact_rate(fps: float) -> Fraction:
    """Return a frame rate as an exact fraction; 29.97 becomes 30000/1001."""
    nominal = round(fps)
    if nominal and abs(fps - nominal * 1000 / 1001) < 2e-3:
        return Fraction(nominal * 1000, 1001)
    return Fraction(fps).limit_denominator(1001)


def _encode(
    path: Path, frames: Iterable[np.ndarray], rate: Fraction, audio: np.ndarray | None, sample_rate: int, crf: int
) -> None:
    """Encode frames at `rate` per second and the sound, and write them to `path`; see `write_mp4`."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as output:
        # With instructions that depend on the processor x264 writes different bytes from call to call.
        quality = {"crf": str(crf), "preset": "medium", "threads": "1", "x264-params": "cpu-independent=1"}
        video = output.add_stream("libx264", rate=rate, options=quality)
        video.pix_fmt = "yuv420p"
        # Write the colour space into the stream, so that no player guesses the matrix from the picture's size.
        video.codec_context.colorspace = Colorspace.ITU709
        video.codec_context.color_primaries = video.codec_context.color_trc = 1  # BT.709
        video.codec_context.color_range = ColorRange.MPEG
        sound = None
        if audio is not None:
            sound = output.add_stream("aac", rate=sample_rate, layout="stereo", options={"flags": "+bitexact"})
            sound.bit_rate = 192_000
        count = written = 0
        for count, pixels in enumerate(frames, start=1):
            height, width = pixels.shape[:2]
            if count == 1:
                if height % 2 or width % 2:
                    raise ValueError(f"frames of {width}×{height}: H.264 yuv420p needs an even width and height")
                video.width, video.height = width, height
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = count - 1, 1 / rate
            output.mux(video.encode(frame))
            if sound is not None and audio is not None:
                due = int(count / rate * sample_rate) // AUDIO_BLOCK * AUDIO_BLOCK
                written = _write_sound(output, sound, audio, written, due, sample_rate)
        if not count:
            raise ValueError("no frame to write: an mp4 needs at least one")
        if sound is not None and audio is not None:
            _write_sound(output, sound, audio, written, round(count / rate * sample_rate), sample_rate)
            output.mux(sound.encode(None))
        output.mux(video.encode(None))


def _write_sound(output, sound: AudioStream, audio: np.ndarray, start: int, end: int, sample_rate: int) -> int:
    """Encode and write samples [start, end) of `audio` (2, N), with silence after its end.

    Returns:
        `end`, where the next call starts.
    """
    for begin in range(start, end, AUDIO_BLOCK):
        length = min(AUDIO_BLOCK, end - begin)
        block = np.zeros((2, length), np.float32)
        piece = audio[:, begin : begin + length]
        block[:, : piece.shape[1]] = piece
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, begin, Fraction(1, sample_rate)
        output.mux(sound.encode(frame))
    return end
