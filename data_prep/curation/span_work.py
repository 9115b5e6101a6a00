"""The steps of curating one segment: divide it into spans, curate each span, and join their clips.

A *span* is a segment that is short enough to be decoded at once. The steps are separate calls so that a sandbox can run
each in a child process, and repeat only the one that ended its child.
"""

from dataclasses import replace
from typing import Protocol

from data_prep.clip import Segment


class SpanWork(Protocol):
    """The interface that `curate_segment` needs: the two steps, which never raise for damaged media."""

    def spans(self, segment: Segment) -> list[Segment]:
        """Return the spans of a segment, in order. One that cannot be divided is returned alone, with a failed clip."""
        ...

    def curate_span(self, span: Segment) -> Segment:
        """Return the span with its clips, each with its verdict."""
        ...


def curate_segment(work: SpanWork, segment: Segment) -> Segment:
    """Curate a segment span by span, with the steps of `work`.

    Returns:
        The segment with the clips of all its spans, the start of the first span and the end of the last one.
    """
    spans = [span if span.clips else work.curate_span(span) for span in work.spans(segment)]
    clips = [clip for span in spans for clip in span.clips]
    return replace(spans[0], segment_id=segment.segment_id, end_s=spans[-1].end_s, clips=clips)
