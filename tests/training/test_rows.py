"""Where the rows of each step come from, in one process and in several."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from cldfast import CLD
from cldfast.lab.models import MLPScore
from cldfast.training import TrainConfig, Trainer
from cldfast.training.rows import Order, Taken, row_source, with_dropped, with_mirrored

ROWS = torch.arange(40.0).reshape(20, 2)
LABELS = torch.arange(20)
WHOLE = Taken(3, 8, slice(0, 8))
HALVES = [Taken(3, 8, slice(0, 4)), Taken(3, 8, slice(4, 8))]


class Pairs(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return ROWS[index], int(LABELS[index])


def _same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_a_data_set_gives_the_rows_of_a_tensor_in_the_same_order():
    tensor = row_source((ROWS, LABELS), WHOLE)
    kinds = {
        "data set": row_source(Pairs(), WHOLE),
        "workers": row_source(Pairs(), WHOLE, workers=1),
        "loader": row_source(DataLoader(Pairs(), batch_size=8, shuffle=True), WHOLE),
    }
    for name, source in kinds.items():
        for step in (0, 1, 2, 7, 3):  # on, over an epoch's end, ahead, and back
            assert _same(source.at(step), tensor.at(step)), (name, step)
    assert kinds["loader"].shape == [20]


@pytest.mark.parametrize("kind", ["tensor", "data set", "function", "iterable"])
def test_shares_of_processes_are_parts_of_one_batch(kind):
    data = {
        "tensor": (ROWS, LABELS),
        "data set": Pairs(),
        "function": lambda step: (ROWS[step : step + 8], LABELS[step : step + 8]),
        "iterable": DataLoader(
            TensorDataset(ROWS[:16], LABELS[:16]), batch_size=8, sampler=range(16)
        ),
    }[kind]
    whole, parts = row_source(data, WHOLE), [row_source(data, taken) for taken in HALVES]
    for step in range(5):
        shares = [part.at(step) for part in parts]
        assert _same([torch.cat(tensors) for tensors in zip(*shares, strict=True)], whole.at(step))


def test_iterables_are_begun_again_and_skip_what_was_seen():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(ROWS[:16].split(8))

    batches = [row_source(Stream(), WHOLE).at(step)[0] for step in (0, 1, 4, 5)]
    assert torch.equal(batches[0], ROWS[:8]) and torch.equal(batches[0], batches[2])
    assert torch.equal(batches[1], ROWS[8:16]) and torch.equal(batches[1], batches[3])
    source = row_source(iter(ROWS[:8].split(8)), WHOLE)
    source.at(0)
    with pytest.raises(ValueError, match="begins no second time"):
        source.at(1)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([ROWS], TypeError, "expected a tensor, a pair of tensors, a Dataset"),
        (DataLoader(Pairs(), batch_size=5), ValueError, "batches of 8, as the settings have it, got 5"),
        (TensorDataset(ROWS[:0]), ValueError, "with rows, got none"),
        (lambda step: ROWS[:7], ValueError, "expected 8 rows, got 7"),
        (DataLoader(Pairs(), batch_size=5, sampler=WeightedRandomSampler([1.0] * 20, 20)), ValueError, "8 rows, got 5"),
        (TensorDataset(ROWS.long()), TypeError, "float32 or float64, got torch.int64"),
    ],
)  # fmt: skip
def test_what_holds_no_rows(data, error, words):
    with pytest.raises(error, match=words):
        row_source(data, WHOLE).at(0)


def test_256_processes_take_each_row_of_an_epoch_once():
    """Shard arithmetic: no process is started."""
    rows, size = 5_000, 1_024
    takes = [Taken(1, size, slice(4 * k, 4 * k + 4)) for k in range(256)]
    order, steps = Order(rows, 1), 5
    drawn = torch.cat(
        [order.indices(taken.first(step), taken.count) for step in range(steps) for taken in takes]
    )
    assert torch.equal(drawn[:rows].sort().values, torch.arange(rows))
    assert torch.equal(drawn, Order(rows, 1).indices(0, steps * size))


def test_dropped_labels_are_the_same_in_any_number_of_parts():
    labels = torch.arange(80_000) % 10
    whole = with_dropped(labels, 0.1, 10, Taken(3, 80_000, slice(0, 80_000)), 2)
    taken = [Taken(3, 80_000, slice(k, k + 20_000)) for k in range(0, 80_000, 20_000)]
    parts = [with_dropped(labels[one.share], 0.1, 10, one, 2) for one in taken]
    assert torch.equal(torch.cat(parts), whole)
    # Five standard deviations of a share of 0.1 among 80,000.
    assert (whole == 10).double().mean().item() == pytest.approx(
        0.1, abs=5 * (0.09 / 80_000) ** 0.5
    )
    assert torch.equal(whole[whole < 10], labels[whole < 10])


def test_half_of_the_images_are_turned_the_same_ones_in_any_number_of_parts():
    rows = torch.arange(8_000 * 4.0).reshape(8_000, 1, 2, 2)
    whole = with_mirrored(rows, Taken(3, 8_000, slice(0, 8_000)), 2)
    taken = [Taken(3, 8_000, slice(k, k + 2_000)) for k in range(0, 8_000, 2_000)]
    parts = [with_mirrored(rows[one.share], one, 2) for one in taken]
    assert torch.equal(torch.cat(parts), whole)
    turned = whole[:, 0, 0, 0] > rows[:, 0, 0, 0]
    assert torch.equal(whole[turned], rows[turned].flip(3))
    assert torch.equal(whole[~turned], rows[~turned])
    # Five standard deviations of a share of one half among 8,000.
    assert turned.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 8_000**0.5)
    other = with_mirrored(rows, Taken(3, 8_000, slice(0, 8_000)), 3)  # another step, other ones
    assert 0.4 < (other == whole).all((1, 2, 3)).double().mean() < 0.6
    with pytest.raises(ValueError, match="flip: expected images"):
        with_mirrored(ROWS, WHOLE, 0)


def test_training_on_a_loader_is_training_on_its_rows():
    config = TrainConfig(steps=4, batch_size=8, label_dropout=0.5)
    weights = []
    for data in (
        (ROWS / 40, LABELS % 3),
        DataLoader(TensorDataset(ROWS / 40, LABELS % 3), batch_size=8),
    ):
        torch.manual_seed(0)
        trainer = Trainer(MLPScore(2, width=8, depth=1, classes=3), CLD(), data, config)
        weights.append([p.detach().clone() for p in trainer.fit().parameters()])
    assert _same(*weights)
    with pytest.raises(ValueError, match="network of classes"):
        Trainer(MLPScore(2, width=8, depth=1), CLD(), ROWS, config)
