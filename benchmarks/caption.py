"""Measure the accuracy of composed captions, and the cost of Ray for the speech recogniser.

    kinotone synth --output CORPUS --synth.clips 160 --synth.seed 11
    kinotone curate --input CORPUS/clips --output CURATED && kinotone caption --input CURATED --output CAPTIONED
    python -m benchmarks.caption --labels CORPUS/labels.parquet --captioned CAPTIONED
    python -m benchmarks.caption --speed CURATED [--workers 2] [--segments 60]

The first command compares the captions of a synthetic corpus with its labels:

- Word error rate of the transcripts that the captions use, over all words said in kept clips; and the same over the
  clips with a transcript, which excludes speech that the recogniser did not trust. Whisper's English normaliser unifies
  numbers and spellings.
- Quotes: their number, and how many hold a word that was not said.
- Events (impacts, chirps, ticks, bars, tunes, sentences): how many have their class named in the caption, and how many
  have a named span that starts within 0.15 s of the first event.
- Claims about sounds and languages: how many the label confirms. Colours and camera are not in the labels and are not
  counted.

The second command measures clips of speech per second through the recogniser: in Ray, from the curated set through
decoding and recognition to commit; and in a plain loop over sound that is decoded before, with as many processes. The
clock starts when every worker has processed a segment. So imports, loading of weights and Ray's start are excluded.
"""

import argparse
import json
import multiprocessing
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq

from captioning.hear.transcribe import Transcriber
from captioning.hear.window import SAMPLE_RATE
from captioning.settings import TranscribeSettings
from data_prep.clip import Clip, Segment
from data_prep.dataset.index import read_manifest
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import read_segment
from data_prep.media.decode import decode_audio, span
from pipelines.cluster import ray_running
from pipelines.dataflow.graph import Stage, run_graph

ONSET_S = 0.15
# For each kind of synthetic clip, the words in a sentence that name its sound correctly.
CLASSES = {
    "ball": r"knock|impact|thump|thud|bounc|clink|tap\b|tapping|hammer|wood|chop|ping|glass|whack|thunk",
    "bars": r"marimba|xylophone|glockenspiel|vibraphone|mallet|percussion|chime|bell|tubular|[Mm]usic|steelpan|ding",
    "music": r"[Mm]usic|piano|keyboard|harp|guitar|plucked|string|zither|strumming",
    "bird": r"bird|chirp|whistl|squawk|owl|coo",
    "clock": r"clock|tick",
    "speech": r"[Ss]peech|[Ss]peaker",
}
_SPAN = re.compile(r"from (\d+\.\d) to (\d+\.\d) seconds")


def word_errors(wanted: list[str], found: list[str]) -> int:
    """The Levenshtein distance of two lists of words."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def measure(labels: Path, captioned: str) -> Counter:
    """Compare captions with labels, for kept clips that are a whole synthetic clip (others have a shifted time line).

    Args:
        labels: `labels.parquet` of the corpus.
        captioned: the captioned set.

    Returns:
        Counts by name.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalise = EnglishTextNormalizer({})
    truth = {Path(row["clip"]).name: row for row in pq.read_table(labels).to_pylist()}
    counts = Counter()
    for row in read_manifest(captioned).to_pylist():
        label = truth[Path(row["uri"]).name]
        if row["verdict"] != "kept" or label["kind"] not in CLASSES:
            continue
        caption = json.loads(row["caption"])
        counts["clips"] += 1
        said = normalise(label["transcript"]).split()
        written = normalise(caption["transcript"]["text"]).split()
        counts["words said"] += len(said)
        counts["word errors"] += word_errors(said, written)
        if written:
            counts["words said in transcribed clips"] += len(said)
            counts["word errors in transcribed clips"] += word_errors(said, written)
        for quote in re.findall("“([^“”]*)”", caption["text"]):
            counts["quotes"] += 1
            counts["quotes not said"] += f" {normalise(quote)} " not in f" {' '.join(said)} "
        _count_events(label, caption, counts)
    return counts


def _count_events(label: dict, caption: dict, counts: Counter) -> None:
    named = re.compile(CLASSES[label["kind"]])
    sentences = [e["sentence"] for e in caption["evidence"] if e["source"] in ("tags", "transcript", "voice")]
    sentences = [re.sub("“[^“”]*”", "", sentence) for sentence in sentences]
    right = [sentence for sentence in sentences if named.search(sentence)]
    counts["claims"] += len(sentences)
    counts["claims confirmed"] += len(right)
    first = min(event["time_s"] for event in label["events"])
    starts = [float(match.group(1)) for sentence in right for match in _SPAN.finditer(sentence)]
    starts += [0.0 for sentence in right if "throughout" in sentence]
    counts["events"] += 1
    counts[f"events of {label['kind']}"] += 1
    counts["events named"] += bool(right)
    counts[f"events named of {label['kind']}"] += bool(right)
    counts["events named in time"] += any(abs(at - first) <= ONSET_S for at in starts)


@dataclass
class Recogniser:
    """A stage that decodes the sound of kept clips and transcribes it, as the caption stage does."""

    settings: TranscribeSettings

    def __post_init__(self) -> None:
        self.transcriber = Transcriber(self.settings)

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Add the transcript of each kept clip to its caption."""
        return [replace(segment, clips=[self._transcribed(clip) for clip in segment.clips]) for segment in segments]

    def _transcribed(self, clip: Clip) -> Clip:
        return replace(clip, caption={"transcript": self.transcriber([voice_of(clip)])[0]}) if clip.kept else clip


def voice_of(clip: Clip) -> np.ndarray:
    """The mono sound of a kept clip, (N,) float32 at 16 kHz."""
    assert clip.media
    return decode_audio(clip.media, *span(clip), SAMPLE_RATE, 2).mean(0)


def plain_rate(curated: str, ids: list[str], workers: int) -> float:
    """Clips per second of plain loops in `workers` processes, each over its share of the segments."""
    shares = [ids[at::workers] for at in range(workers)]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        barrier = manager.Barrier(workers)
        return sum(pool.map(_plain_loop, [curated] * workers, shares, [barrier] * workers))


def _plain_loop(curated: str, ids: list[str], barrier) -> float:
    recognise = Transcriber(TranscribeSettings(threads=1))
    segments = [read_segment(curated, segment_id) for segment_id in ids]
    first, *rest = [[voice_of(clip) for clip in segment.clips if clip.kept] for segment in segments]
    for voice in first:
        recognise([voice])
    barrier.wait()
    began = time.perf_counter()
    for voice in (voice for voices in rest for voice in voices):
        recognise([voice])
    return sum(map(len, rest)) / (time.perf_counter() - began)


def ray_rate(curated: str, ids: list[str], workers: int) -> float:
    """Clips per second of the recogniser as a stage of the graph, from set to set."""
    stages = [Stage("caption", partial(Recogniser, TranscribeSettings(threads=1)))]
    segments = [Segment(entry.segment_id, entry.uri, size=entry.size) for entry in Ledger(curated).entries()]
    began, clips = 0.0, 0
    with TemporaryDirectory() as output, ray_running(workers):
        chosen = [segment for segment in segments if segment.segment_id in ids]
        for count, summary in enumerate(run_graph(chosen, stages, output, curated), 1):
            clips += summary.entry.kept if count > workers else 0
            began = time.perf_counter() if count == workers else began
        return clips / (time.perf_counter() - began)


def main() -> None:
    """Parse the arguments and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--captioned")
    parser.add_argument("--speed", metavar="CURATED", help="measure the recogniser's speed on this set")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--segments", type=int, default=60)
    args = parser.parse_args()
    if args.speed:
        rows = read_manifest(args.speed).select(["segment_id", "verdict", "sound_class"]).to_pylist()
        spoken = {row["segment_id"] for row in rows if (row["verdict"], row["sound_class"]) == ("kept", "speech")}
        ids = sorted(spoken)[: args.segments]
        plain, in_ray = plain_rate(args.speed, ids, args.workers), ray_rate(args.speed, ids, args.workers)
        print(f"{len(ids)} segments, {args.workers} workers: {in_ray:.2f} clips/s in Ray, {plain:.2f} in a plain loop")
        print(f"ratio {in_ray / plain:.3f}")
    if args.labels and args.captioned:
        show(measure(args.labels, args.captioned))
    elif not args.speed:
        parser.error("give --labels and --captioned, or --speed")


def show(found: Counter) -> None:
    """Print the rates that `measure` counted."""
    transcribed = "word errors in transcribed clips", "words said in transcribed clips"
    for name, part, total in (
        ("word error rate", "word errors", "words said"),
        ("word error rate where words are written", *transcribed),
        ("quotes that hold a word not said", "quotes not said", "quotes"),
        ("events whose class is named", "events named", "events"),
        (f"events named within {ONSET_S} s of their start", "events named in time", "events"),
        ("claims of sounds confirmed", "claims confirmed", "claims"),
        *((f"  {kind}: class named", f"events named of {kind}", f"events of {kind}") for kind in CLASSES),
    ):
        share = found[part] / found[total] if found[total] else float("nan")
        print(f"{name:45} {share:6.3f}  ({found[part]} of {found[total]})")


if __name__ == "__main__":
    main()
