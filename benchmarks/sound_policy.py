"""Measure precision and recall of the sound policy on synthetic mixtures with known labels.

`python -m benchmarks.sound_policy [--clips 320] [--seed 1009]`

The default seed was not used when the thresholds were chosen.
"""

import argparse
from collections import Counter, defaultdict

from data_prep.curation.policy import Judgement, judge
from data_prep.scores import sound
from data_prep.scores.audio_tags import load_tagger
from data_prep.scores.voice_activity import voice_probability
from data_prep.settings import PolicySettings
from data_prep.synthetic.mixtures import Mixture, mixture


def judged(made: Mixture, policy: PolicySettings) -> tuple[Judgement, dict[str, float]]:
    """Measure every score of a mixture and judge it; returns the judgement and the scores."""
    scores = {"has_audio": 1.0} | sound.level_scores(made.sound, policy.silence_db) | sound.spectral_scores(made.sound)
    mono = sound.for_networks(made.sound)
    scores |= sound.voice_scores(voice_probability(sound.turned_up(mono)))
    scores |= sound.tag_scores(mono, load_tagger("package:yamnet"))[0]
    return judge(scores, policy), scores


def measure(clips: int, seed: int) -> dict:
    """Judge `clips` mixtures; returns precision and recall of "kept", counts, and the wrong verdicts."""
    policy, counts, classes = PolicySettings(), Counter[str](), Counter[str]()
    by_kind: dict[str, Counter] = defaultdict(Counter)
    wrong = []
    for index in range(clips):
        made = mixture(seed, index)
        judgement, scores = judged(made, policy)
        kept = judgement.verdict == "kept"
        outcome = ("true" if kept == made.informative else "false") + (" kept" if kept else " dropped")
        counts[outcome] += 1
        by_kind[made.kind][outcome.split()[0]] += 1
        if kept and made.informative:
            classes["right" if judgement.sound_class == made.sound_class else "wrong"] += 1
        if kept != made.informative:
            wrong.append((index, made.kind, made.about, made.snr_db, judgement.reason, scores))
    kept, missed = counts["true kept"] + counts["false kept"], counts["false dropped"]
    return {
        "precision": counts["true kept"] / max(1, kept),
        "recall": counts["true kept"] / max(1, counts["true kept"] + missed),
        "counts": dict(counts),
        "classes": dict(classes),
        "by_kind": {kind: dict(found) for kind, found in by_kind.items()},
        "wrong": wrong,
    }


def main() -> None:
    """Parse the arguments and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1009)
    args = parser.parse_args()
    found = measure(args.clips, args.seed)
    print(f"{args.clips} mixtures, seed {args.seed}: {found['counts']}")
    print(f"precision {found['precision']:.4f}, recall {found['recall']:.4f}")
    print(f"classes of correctly kept mixtures: {found['classes']}")
    for kind, counts in sorted(found["by_kind"].items()):
        print(f"  {kind:18} {counts}")
    for index, kind, about, snr_db, reason, scores in found["wrong"]:
        names = ("stationarity", "salient_ratio", "prominent_s", "tone_ratio", "wander", "uneven_db", "voice_ratio")
        shown = ", ".join(f"{name} {scores[name]:.2g}" for name in (*names, "tag_event", "tag_noise", "tag_music"))
        print(f"  wrong: {index} {kind} ({about}, {snr_db:.0f} dB) {reason or 'kept'}: {shown}")


if __name__ == "__main__":
    main()
