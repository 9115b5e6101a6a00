import pytest

from captioning.captioner import Captioner
from captioning.settings import CaptionSettings


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    """Share one captioner in the session: loading WhisperX takes seconds."""
    return Captioner(CaptionSettings())
