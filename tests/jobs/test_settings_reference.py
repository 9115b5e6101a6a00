"""docs/settings.md says what the settings models say."""

from pathlib import Path

from jobs.settings_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    again = "run `python -m jobs.settings_reference > docs/settings.md`"
    assert PAGE.read_text() == reference(), again


def test_every_key_has_a_meaning():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if row.endswith("|  |")] == []
