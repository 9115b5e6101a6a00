"""Kill a worker, an actor, the raylet or the driver at any moment: the resumed run writes the same bytes."""

from pathlib import Path

import pytest

from data_prep.dataset import storage
from data_prep.dataset.ledger import Ledger
from tests.object_store import Faults, s3_server
from tests.pipelines.killing import KINDS, committed, completed, counts, digests, films, finished, start, strike

FILMS = 40
FAULTS = {"error": 0.05, "lost": 0.03, "slow": 0.05, "hang": 0.005}  # shares of the requests


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films(tmp_path_factory.mktemp("kills") / "films", FILMS)


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """The set of an uninterrupted run."""
    output = source.parent / "whole"
    completed(source, output)
    return output


def _same(output: str | Path, whole: Path, count: int = FILMS) -> None:
    assert digests(output) == digests(whole)
    assert counts(output) == counts(whole)
    assert len(list(Ledger(output).entries())) == count + 1


@pytest.mark.ci
def test_each_kind_of_process_is_killed_once(tmp_path: Path) -> None:
    count = 12
    source, whole, output = films(tmp_path / "films", count), tmp_path / "whole", tmp_path / "killed" / "out"
    completed(source, whole)
    process = start(source, output)
    # A worker or an actor that dies is replaced, and the run continues.
    for kind, share in (("worker", 3), ("actor", 3), ("raylet", 2)):
        strike(process, kind, 0, committed(output), count // share)
    finished(process)
    process = start(source, output)
    strike(process, "driver", 0, committed(output), count)
    finished(process)
    completed(source, output)
    _same(output, whole, count)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment(kind: str, seed: int, source: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(source, output)
    at = strike(process, kind, seed + 1, committed(output), FILMS)
    code = finished(process)
    print(f"{kind} {seed}: killed with {at} of {FILMS + 1} committed, exit code {code}")
    assert at >= 0, "the run was over before the kill"
    completed(source, output)
    _same(output, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_while_the_store_fails(
    kind: str, seed: int, source: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with the set on an S3 server that answers with 500, breaks connections, is slow, or does not answer."""
    faults, output = Faults(FAULTS, seed), f"s3://sets/{kind}{seed}"
    with s3_server(faults) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage.file_system.cache_clear()
        process = start(source, output)
        at = strike(process, kind, seed + 1, lambda: server.count(f"{kind}{seed}/ledger/"), FILMS)
        code = finished(process)
        print(f"{kind} {seed}: killed with {at} of {FILMS + 1} committed, exit code {code}")
        assert at >= 0, "the run was over before the kill"
        completed(source, output)
        print(f"requests: {dict(faults.met)}")
        faults.rates = {}
        _same(output, whole)
    storage.file_system.cache_clear()
