"""What the tests of fits share."""

from __future__ import annotations

import pytest

from cldfast.process.sde import CLD


@pytest.fixture
def sde() -> CLD:
    return CLD(a=1.0)
