"""Work that crashes, hangs or allocates too much in a sandboxed child; the child imports it by name."""

import ctypes
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.clip import Clip, Segment, stable_id
from data_prep.curation.curator import Curator
from data_prep.curation.sandbox import Sandbox, beat
from data_prep.curation.span_work import SpanWork
from data_prep.settings import CurateSettings


class Crashing:
    """Does what the source's name says; `log`, where it is given, gets a line for each try."""

    def __init__(self, log: str = "", work: SpanWork | None = None) -> None:
        self.log, self.work = log, work

    def spans(self, segment: Segment) -> list[Segment]:
        return [segment] if self.work is None else self.work.spans(segment)

    def curate_span(self, span: Segment) -> Segment:
        name = Path(span.uri).stem
        tries = 0
        if self.log:
            with open(self.log, "a+") as log:
                log.seek(0)
                tries = log.read().count(f"{name}\n")
                log.write(f"{name}\n")
        if "segfault" in name or ("once" in name and not tries):
            ctypes.string_at(0)
        if "loop" in name:
            while True:
                pass
        if "slow" in name:
            for _ in range(20):
                time.sleep(0.1)
                beat()
        if "bomb" in name:
            held = []
            for _ in range(1000):
                held.append(bytearray(64 << 20))
                beat()
            raise AssertionError(f"{len(held)} × 64 MiB were given")
        if self.work is not None:
            return self.work.curate_span(span)
        return replace(span, clips=[Clip(stable_id(span.uri), 0.0, 1.0, media=span.uri.encode())])


def refuse() -> Crashing:
    raise ValueError("curate.tagger: weights are missing; give a path")


def crashing_curator(settings: CurateSettings, log: str = "") -> Crashing:
    return Crashing(log, Curator(settings))


def crashing_stage(settings: CurateSettings, log: str = "") -> Sandbox:
    """A stage of the graph whose decoder does what the source's name says; a loop ends after 2 s."""
    return Sandbox(partial(crashing_curator, settings, log), stall_s=2.0)
