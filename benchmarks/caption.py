"""How true are captions composed from measured facts alone? A captioned synthetic corpus beside its labels.

    kinotone synth --output CORPUS --synth.clips 160 --synth.seed 11
    kinotone curate --input CORPUS/clips --output CURATED && kinotone caption --input CURATED --output CAPTIONED
    python -m benchmarks.caption --labels CORPUS/labels.parquet --captioned CAPTIONED

- Word error rate: of all words that were said in kept clips, against the transcripts that the captions rest on; numbers
  and spellings are brought to one form by Whisper's own English normaliser. Beside it, that of the words that were
  written, which leaves out what was not believed.
- Quotes: how many there are, and how many hold a word that was not said.
- Events: of the impacts, chirps, ticks, bars, tunes and sentences, those whose class the caption names, and those for
  which a named span begins within 0.15 s of the first of them.
- Claims: named sounds and languages that the label's kind confirms, of all that are named. Colours and camera are not
  in the labels and not counted.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.index import read_manifest

ONSET_S = 0.15
# What may truly be named of each kind of synthetic clip: a word of the sentence about it.
CLASSES = {
    "ball": r"knock|thump|thud|bounc|clink|tap\b|tapping|hammer|wood|chop|ping|a bouncing ball|glass|whack|thunk",
    "bars": r"marimba|xylophone|glockenspiel|vibraphone|mallet|percussion|chime|bell|tubular|[Mm]usic|steelpan|ding",
    "music": r"[Mm]usic|piano|keyboard|harp|guitar|plucked|string|zither|strumming",
    "bird": r"bird|chirp|whistl|squawk|owl|coo",
    "clock": r"clock|tick",
    "speech": r"[Ss]peech|[Ss]peaker",
}
_SPAN = re.compile(r"from (\d+\.\d) to (\d+\.\d) seconds")


def word_errors(wanted: list[str], found: list[str]) -> int:
    """Levenshtein distance over words."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def measure(labels: Path, captioned: str) -> Counter:
    """Counts over the kept clips that hold one shot (a clip cut out of a longer one has another time line)."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    plain = EnglishTextNormalizer({})
    truth = {Path(row["clip"]).name: row for row in pq.read_table(labels).to_pylist()}
    counts = Counter()
    for row in read_manifest(captioned).to_pylist():
        label = truth[Path(row["uri"]).name]
        if row["verdict"] != "kept" or label["kind"] not in CLASSES:
            continue
        caption = json.loads(row["caption"])
        counts["clips"] += 1
        said = plain(label["transcript"]).split()
        written = plain(caption["transcript"]["text"]).split()
        counts["words said"] += len(said)
        counts["word errors"] += word_errors(said, written)
        if written:
            counts["words said in transcribed clips"] += len(said)
            counts["word errors in transcribed clips"] += word_errors(said, written)
        for quote in re.findall("“([^“”]*)”", caption["text"]):
            counts["quotes"] += 1
            counts["quotes not said"] += f" {plain(quote)} " not in f" {' '.join(said)} "
        _events(label, caption, counts)
    return counts


def _events(label: dict, caption: dict, counts: Counter) -> None:
    named = re.compile(CLASSES[label["kind"]])
    sentences = [e["sentence"] for e in caption["evidence"] if e["source"] in ("tags", "transcript", "voice")]
    sentences = [re.sub("“[^“”]*”", "", sentence) for sentence in sentences]
    right = [sentence for sentence in sentences if named.search(sentence)]
    counts["claims"] += len(sentences)
    counts["claims confirmed"] += len(right)
    first = min(event["time_s"] for event in label["events"])
    begins = [float(match.group(1)) for sentence in right for match in _SPAN.finditer(sentence)]
    begins += [0.0 for sentence in right if "throughout" in sentence]
    counts["events"] += 1
    counts[f"events of {label['kind']}"] += 1
    counts["events named"] += bool(right)
    counts[f"events named of {label['kind']}"] += bool(right)
    counts["events named in time"] += any(abs(at - first) <= ONSET_S for at in begins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--captioned", required=True)
    args = parser.parse_args()
    found = measure(args.labels, args.captioned)
    transcribed = "word errors in transcribed clips", "words said in transcribed clips"
    for name, part, whole in (
        ("word error rate", "word errors", "words said"),
        ("word error rate where words are written", *transcribed),
        ("quotes that hold a word not said", "quotes not said", "quotes"),
        ("events whose class is named", "events named", "events"),
        (f"events named within {ONSET_S} s of their begin", "events named in time", "events"),
        ("claims of sounds confirmed", "claims confirmed", "claims"),
        *((f"  {kind}: class named", f"events named of {kind}", f"events of {kind}") for kind in CLASSES),
    ):
        share = found[part] / found[whole] if found[whole] else float("nan")
        print(f"{name:45} {share:6.3f}  ({found[part]} of {found[whole]})")


if __name__ == "__main__":
    main()
