"""Fixtures of the tests that run beside the codebases themselves."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def recorded(monkeypatch):
    """All that the codebase draws, in order."""
    draws = []
    for name in ("randn", "randn_like"):
        real = getattr(torch, name)

        def recording(*args, real=real, **kwargs):
            draws.append(real(*args, **kwargs))
            return draws[-1].clone()

        monkeypatch.setattr(torch, name, recording)
    return draws
