"""Paths in settings, changed copies of settings, and what differs between two."""

import pytest
from pydantic import ValidationError

from data_prep.settings import CurateSettings, KeptClipScoreSettings, differences


def test_a_path_that_exists_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "yamnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert CurateSettings(tagger="yamnet").tagger == str(tmp_path / "yamnet")


@pytest.mark.parametrize("name", ["", "package:yamnet", "google/yamnet", "nowhere/yamnet"])
def test_a_name_that_is_no_path_stays(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CurateSettings(tagger=name).tagger == name


def test_a_changed_copy_is_validated(tmp_path, monkeypatch):
    (tmp_path / "yamnet").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = CurateSettings(appraisal=KeptClipScoreSettings(av_agreement=True))
    assert settings.replace(tagger="yamnet").tagger == str(tmp_path / "yamnet")
    assert settings.replace(tagger="yamnet").appraisal == settings.appraisal
    with pytest.raises(ValidationError):
        settings.replace(clip_min_s=-1.0)
    with pytest.raises(ValidationError):
        settings.replace(clip_length=2.0)


def test_differences_are_leaves_with_dotted_keys():
    before, after = {"a": {"b": 1, "c": [1]}, "d": None}, {"a": {"b": 2, "c": [1]}, "d": None, "e": 0}
    assert differences(before, after) == [("a.b", 1, 2), ("e", "unset", 0)]
    assert differences(before, before) == []
