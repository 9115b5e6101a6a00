"""Names of the files and folders of a set.

    <set>/settings.yaml                  the settings that made the set; written first
    <set>/shards/{segment_id}.tar        media, captions and encoded samples of a segment's kept clips
    <set>/manifest/{segment_id}.parquet  a row per clip considered
    <set>/ledger/{segment_id}.json       shows that the segment is committed; written after its other files
    <set>/manifest_parts/*.parquet       manifest rows of many segments, compacted
    <set>/ledger_parts/*.parquet         ledger entries of many segments, compacted
    <set>/index.parquet                  for each sample: shard, offset, size, bucket
    <set>/duplicates.parquet             clips that repeat another clip of the set
    <set>/summary.json                   counts and times; written when every segment is committed
    <set>/report.html                    the report, written after the summary

The functions return paths relative to the set, as the manifest and the index store them.
"""

SETTINGS = "settings.yaml"
SUMMARY = "summary.json"
REPORT = "report.html"
INDEX = "index.parquet"
DUPLICATES = "duplicates.parquet"

SHARDS = "shards"
MANIFEST = "manifest"
LEDGER = "ledger"
MANIFEST_PARTS = "manifest_parts"
LEDGER_PARTS = "ledger_parts"
COMMIT_FOLDERS = (SHARDS, MANIFEST, LEDGER, LEDGER_PARTS, MANIFEST_PARTS)


def shard(segment_id: str) -> str:
    """Return the path of a segment's tar."""
    return f"{SHARDS}/{segment_id}.tar"


def manifest(segment_id: str) -> str:
    """Return the path of the file with a segment's manifest rows."""
    return f"{MANIFEST}/{segment_id}.parquet"


def ledger_entry(segment_id: str) -> str:
    """Return the path of a segment's ledger entry."""
    return f"{LEDGER}/{segment_id}.json"
