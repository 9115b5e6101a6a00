"""Curate a folder of videos in Python, without Ray: cut, judge and commit one source after another.

    python examples/curate_folder.py CLIPS SET

SET is then a curated set, as `kinotone curate` makes it: `kinotone caption --input SET` reads it. The same command
resumes a run that was stopped. For many videos, use `kinotone curate`: it curates in parallel, and in
child processes that a damaged file may crash.
"""

import argparse
import time
from pathlib import Path

from data_prep.curation.curator import Curator
from data_prep.dataset.ledger import Ledger
from data_prep.dataset.shards import commit_segment
from data_prep.settings import CurateSettings
from data_prep.sources.listing import each_source
from pipelines.dataflow.commit import claim, finish


def curate_folder(clips: Path, output: Path) -> dict:
    """Curate every video under `clips` into the set `output`; return its summary."""
    began = time.monotonic()
    settings = CurateSettings()
    # 1. The settings of a set are written first: a set is judged by one policy.
    claim(output, {"curate": settings.model_dump(mode="json")}, [str(clips)])
    curator = Curator(settings)
    done = Ledger(output).done()
    for segment in each_source([str(clips)]):
        if segment.segment_id in done:
            continue
        # 2. Each clip of the segment gets one verdict: kept, dropped or failed.
        (judged,) = curator([segment])
        for clip in judged.clips:
            print(f"{Path(judged.uri).name} {clip.start_s:6.2f} s  {clip.verdict} {clip.reason or clip.sound_class}")
        # 3. Shard, manifest rows, and the ledger entry last.
        commit_segment(output, judged)
    # 4. The index and the summary of the set.
    wall_s = time.monotonic() - began
    return finish(output, "curate", {"curate": wall_s}, wall_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of videos")
    parser.add_argument("output", type=Path, help="folder of the curated set")
    arguments = parser.parse_args()
    summary = curate_folder(arguments.clips, arguments.output)
    print(f"{summary['kept']} of {summary['considered']} clips kept, in {arguments.output}")
