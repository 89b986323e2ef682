"""The benchmark of the networks' own time, made tiny."""

from __future__ import annotations

import network_time

from cldfast.bench.timing import Effort


def test_all_ways_are_measured(monkeypatch) -> None:
    monkeypatch.setattr(network_time, "CASES", network_time.CASES[:1])
    (row,) = network_time.measure(Effort(rounds=3, sample=1e-4, budget=1e-3))
    assert row["batch"] == 64
    assert all(float(row[f"{way}_ratio"]) > 0 for way in network_time.WAYS)
