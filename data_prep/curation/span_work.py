"""A segment's walk through curation: find its spans, curate each, and join their clips.

A *span* is a segment that is short enough to be decoded at once. The steps are separate so that a sandbox can run each
in a child process and repeat only the one that ended its child.
"""

from dataclasses import replace
from typing import Protocol

from data_prep.clip import Segment


class SpanWork(Protocol):
    """The two steps of curating a segment. Neither raises for damaged media."""

    def spans(self, segment: Segment) -> list[Segment]:
        """Divide a segment into spans, in order. A segment that cannot be divided is returned with its failed clip."""
        ...

    def curate_span(self, span: Segment) -> Segment:
        """Return the span with its clips, each with its verdict."""
        ...


def curate_segment(work: SpanWork, segment: Segment) -> Segment:
    """Curate a segment span by span.

    Returns:
        The segment with the clips of all its spans, and with the start and end that the spans have found.
    """
    spans = [span if span.clips else work.curate_span(span) for span in work.spans(segment)]
    clips = [clip for span in spans for clip in span.clips]
    return replace(spans[0], segment_id=segment.segment_id, end_s=spans[-1].end_s, clips=clips)
