"""Samples in shards: what is missing is made, whoever comes and whatever was killed."""

from __future__ import annotations

import errno
import os
import signal

import numpy as np
import pytest
import torch

import cldfast
from cldfast.kernels import NoiseAddress, normals
from cldfast.lab.models import MLPScore
from cldfast.sampling import shards as module
from cldfast.sampling.fixed_calls import FixedCalls
from cldfast.sampling.shards import Manifest, Shards, open_shards, shares

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(module.fcntl is None, reason="needs file locks")


def _rows(first, count, shape=(2,)):
    """Rows that know their numbers."""
    return normals((count, *shape), NoiseAddress(5, first))[:, : shape[0]], None


def _read(shards):
    spans = [shards.manifest.span(k) for k in range(shards.manifest.shards)]
    return torch.cat([shards.files.read(k, *span) for k, span in enumerate(spans)])


@pytest.mark.parametrize("files", ["safetensors", "npy"])
def test_shards_hold_all_rows_and_nothing_else(tmp_path, files):
    manifest = Manifest(10, (2,), 4, files, {"seed": 5})
    shards = Shards(tmp_path, manifest)
    assert shards.missing() == [0, 1, 2] and manifest.span(2) == (8, 2)
    assert shards.fill(_rows) == 3
    assert torch.equal(_read(open_shards(tmp_path)), _rows(0, 10)[0])
    assert Shards(tmp_path, manifest).fill(_rows) == 0
    names = {path.name for path in tmp_path.iterdir()}
    made = {"samples.npy"} if files == "npy" else {f"shard-00000{k}.safetensors" for k in range(3)}
    assert names == made | {"manifest.json"}
    if files == "npy":
        assert np.load(tmp_path / "samples.npy", mmap_mode="r").shape == (10, 2)


def test_images_as_png(tmp_path):
    pytest.importorskip("PIL")
    values = torch.linspace(-1.5, 1.5, 5 * 3 * 16).reshape(5, 3, 4, 4)
    shards = Shards(tmp_path, Manifest(5, (3, 4, 4), 3, "png"))
    shards.fill(
        lambda first, count: (values[first : first + count], torch.arange(first, first + count))
    )
    assert (tmp_path / "shard-000001" / "000000004-4.png").exists()
    # Half a level of 255 in [-1, 1].
    torch.testing.assert_close(
        _read(open_shards(tmp_path)), values.clamp(-1, 1), rtol=0, atol=1 / 255 + 1e-6
    )
    with pytest.raises(ValueError, match="images"):
        Shards(tmp_path / "vectors", Manifest(5, (3,), 3, "png"))


def test_only_what_is_missing_is_made_again(tmp_path):
    manifest = Manifest(10, (2,), 4)
    Shards(tmp_path, manifest).fill(_rows)
    path = tmp_path / "shard-000001.safetensors"
    before = path.read_bytes()
    path.unlink()
    (tmp_path / ".shard-000001.safetensors.1.tmp").write_bytes(b"half")
    asked = []
    made = Shards(tmp_path, manifest).fill(lambda *span: asked.append(span) or _rows(*span))
    assert made == 1 and asked == [(4, 4)] and path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_another_run_is_refused(tmp_path):
    Shards(tmp_path, Manifest(10, (2,), 4, settings={"sampler": {"seed": 0}}))
    with pytest.raises(ValueError, match="made with seed = 0, not 1"):
        Shards(tmp_path, Manifest(10, (2,), 4, settings={"sampler": {"seed": 1}}))
    with pytest.raises(ValueError, match="3 of 3 shards are missing"):
        open_shards(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("")
    with pytest.raises(ValueError, match="empty folder"):
        Shards(tmp_path / "other", Manifest(10, (2,), 4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_its_shard_to_the_others(tmp_path):
    """The killed one holds the claim of shard 0 until the system takes it away."""
    manifest = Manifest(10, (2,), 4)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:

        def hangs(first, count):
            os.write(told, b"x")
            signal.pause()

        Shards(tmp_path, manifest).fill(hangs)
        os._exit(1)
    os.read(ready, 1)
    taken = []

    def make(first, count):
        taken.append(first)
        if len(taken) == 2:  # the other two are made while shard 0 is claimed
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return _rows(first, count)

    assert Shards(tmp_path, manifest).fill(make) == 3
    assert taken == [4, 8, 0]
    assert torch.equal(_read(open_shards(tmp_path)), _rows(0, 10)[0])


@pytest.mark.parametrize("files", ["safetensors", "npy"])
def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, files, monkeypatch):
    manifest = Manifest(10, (2,), 4, files)
    first = Shards(tmp_path, manifest)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*arguments):
        raise full

    count = iter(range(100))
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: refuse() if next(count) > 1 else sync(handle))
    with pytest.raises(
        OSError, match="No space left on device; [01] of 3 shards are whole: make room"
    ):
        first.fill(_rows)
    monkeypatch.undo()
    assert Shards(tmp_path, manifest).fill(_rows) > 1
    assert torch.equal(_read(open_shards(tmp_path)), _rows(0, 10)[0])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("shards", [1, 255, 256, 1000, 61_036])
def test_shares_of_256_processes(shards):
    """By number: every shard has one process, and no process two more than another."""
    taken = [shares(shards, process, 256) for process in range(256)]
    assert sorted(k for own in taken for k in own) == list(range(shards))
    sizes = [len(own) for own in taken]
    assert max(sizes) - min(sizes) <= 1
    manifest = Manifest(shards * 16_384 - 1, (2,), 16_384)
    assert manifest.shards == shards
    # Spans are the whole of 0 to n - 1, one after another.
    ends = [manifest.span(k) for k in range(shards)]
    assert ends[0][0] == 0 and sum(ends[-1]) == manifest.n
    assert all(a[0] + a[1] == b[0] for a, b in zip(ends, ends[1:], strict=False))


def test_by_number_each_makes_its_own(tmp_path):
    manifest = Manifest(10, (2,), 2)
    assert [Shards(tmp_path, manifest, (k, 2)).fill(_rows) for k in range(2)] == [3, 2]
    assert torch.equal(_read(open_shards(tmp_path)), _rows(0, 10)[0])


def test_some_numbers_alone_are_made_and_the_rest_later(tmp_path):
    manifest = Manifest(10, (2,), 2)
    assert [Shards(tmp_path, manifest, (k, 2), [1, 3, 4]).fill(_rows) for k in range(2)] == [2, 1]
    assert Shards(tmp_path, manifest).missing() == [0, 2]
    assert Shards(tmp_path, manifest, numbers=[0, 1]).fill(_rows) == 1  # what is free of these
    assert Shards(tmp_path, manifest).fill(_rows) == 1
    assert torch.equal(_read(open_shards(tmp_path)), _rows(0, 10)[0])
    with pytest.raises(ValueError, match="expected numbers from 0 to 4, got 3 to 5"):
        Shards(tmp_path, manifest, (0, 1), [5, 3])


def test_fixed_calls_make_samples_bit_for_bit_alike_for_all_batch_sizes():
    """A matrix product of another number of rows may differ in the last bit; ours has one number."""
    torch.manual_seed(0)
    net = MLPScore(2, width=64, depth=2, classes=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    labels = torch.arange(100) % 3
    for guided, options in ((False, {}), (True, {"guidance_scale": 2.0})):
        made = []
        for size in (16, 48, 100):
            parts = [
                cldfast.sample(
                    FixedCalls(net.eval(), 16, labels[k : k + size], guided), cldfast.CLD(),
                    (min(size, 100 - k), 2), "multistep", 4, seed=0, first_index=k,
                    parameterization="mixed", **options,
                )
                for k in range(0, 100, size)
            ]  # fmt: skip
            made.append(torch.cat(parts))
        assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    plain = cldfast.sample(
        FixedCalls(net, 16), cldfast.CLD(), (50, 2), "em", 4, seed=0, parameterization="mixed"
    )
    whole = cldfast.sample(net, cldfast.CLD(), (50, 2), "em", 4, seed=0, parameterization="mixed")
    torch.testing.assert_close(plain, whole, rtol=1e-4, atol=1e-4)
