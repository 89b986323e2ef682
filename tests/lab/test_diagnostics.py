"""Diagnostics of chains: against the effective size of an autoregression in closed form."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import cldfast
from cldfast.classical import ula
from cldfast.lab.diagnostics import chain_diagnostics


def test_chains_of_ula() -> None:
    """ULA on N(0, 1) is an autoregression with factor 1 - h: ESS = N (1 - a)/(1 + a)."""
    pytest.importorskip("arviz", reason="the extra mcmc (ArviZ) is not installed")
    h, draws, chains = 0.4, 2000, 4
    record = cldfast.Trajectory()
    ula(lambda x, t: -x, torch.randn(chains, 2), h, draws, seed=3, callback=record)
    found = chain_diagnostics(record.states)
    assert found["rhat"].shape == found["ess"].shape == (2,)
    assert np.all(found["rhat"] < 1.01)
    np.testing.assert_allclose(found["ess"], draws * chains * h / (2.0 - h), rtol=0.15)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 4 draws of 2 chains"):
        chain_diagnostics(np.zeros((10, 1, 2)))
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"needs ArviZ: pip install 'cldfast\[mcmc\]'"):
        chain_diagnostics(np.zeros((10, 2, 2)))
