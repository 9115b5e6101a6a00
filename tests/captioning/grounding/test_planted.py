"""Plant falsehoods in a few captions of each kind, and measure how many the checker catches.

`benchmarks.grounding` measures the same on many captions.
"""

import pytest

from benchmarks import grounding


def test_falsehoods_planted_in_words_held_out_from_the_checker_are_caught():
    found = grounding.measure(each=8, seed=77)
    assert found["planted"].total() >= 80
    assert found["caught"].total() >= 0.95 * found["planted"].total(), found["missed"]
    assert found["alarmed"]["composed"] == 0
    assert found["captions"]["composed"] == 44


def test_a_planted_wording_out_of_the_checkers_own_lists_is_refused(monkeypatch):
    monkeypatch.setattr(grounding, "_EMOTIONS", ("It is a happy day.",))
    with pytest.raises(ValueError, match="happy"):
        grounding.held_out()
