"""What several tests of commands share."""

import huggingface_hub
import pytest
from _helpers.hub import TOKEN, serving


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine."""
    with serving() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
