"""Names of the files and folders of a set on disk.

<set>/settings.yaml               what the set was made with; written first
<set>/shards/{segment_id}.tar     media, captions and samples of a segment's kept clips
<set>/manifest/{segment_id}.parquet   a row per clip considered
<set>/ledger/{segment_id}.json    the segment is committed; its last file
<set>/manifest_parts/*.parquet, ledger_parts/*.parquet   the same rows in few large files
<set>/index.parquet               sample → shard, offset, size, bucket
<set>/duplicates.parquet          clips that repeat another clip of the set
<set>/report.html                 the pages for people
<set>/summary.json                counts and times; written last
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
    """Path of a segment's tar, relative to the set."""
    return f"{SHARDS}/{segment_id}.tar"


def manifest(segment_id: str) -> str:
    """Path of a segment's manifest rows, relative to the set."""
    return f"{MANIFEST}/{segment_id}.parquet"


def ledger_entry(segment_id: str) -> str:
    """Path of a segment's ledger entry, relative to the set."""
    return f"{LEDGER}/{segment_id}.json"
