"""The trainer: settings, the loop, the log, and runs that are killed and go on."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from cldfast import CLD, dsm_loss, sample_times
from cldfast.files import read_tensors
from cldfast.lab.models import MLPScore
from cldfast.training import CHECKPOINT, FAILED, LOG, NonFiniteLoss, TrainConfig, Trainer
from cldfast.training.coefficients import CoefficientsAhead
from cldfast.training.log import COLUMNS, TrainLog, read_rows

pytest.importorskip("safetensors")

CONFIG = TrainConfig(
    steps=12, batch_size=8, lr=1e-2, warmup=3, log_every=5, validate_every=6, checkpoint_every=4
)


def _net(seed=0):
    torch.manual_seed(seed)
    return MLPScore(2, width=8, depth=1, time_width=8)


def _data(rows=20, seed=0):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def _trainer(config=CONFIG, **options):
    options = {"validation": _data(11, 1)} | options
    return Trainer(_net(), CLD(), options.pop("data", _data()), config, **options)


def _same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def _without_seconds(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(path)]


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("steps", 0, ValueError), ("steps", 1.5, TypeError), ("batch_size", True, TypeError),
        ("batch_size", -1, ValueError), ("accumulate", 3, ValueError), ("lr", 0.0, ValueError),
        ("lr", float("nan"), ValueError), ("lr", "1", TypeError), ("warmup", -1, ValueError),
        ("decay", "linear", ValueError), ("clip", 0.0, ValueError), ("ema_decay", 1.0, ValueError),
        ("parameterization", "colour", ValueError), ("weighting", "none", ValueError),
        ("t_min", 0.0, ValueError), ("seed", -1, ValueError), ("seed", 1.0, TypeError),
        ("autocast", "float32", ValueError), ("log_every", 0, ValueError), ("checkpoint_every", 0, ValueError),
    ],
)  # fmt: skip
def test_bad_settings(name, value, error):
    with pytest.raises(error, match=name if name != "parameterization" else "colour"):
        TrainConfig(**{name: value})


def test_settings_go_round():
    config = TrainConfig(steps=3, clip=None)
    assert TrainConfig.from_dict(asdict(config)) == config
    with pytest.raises(ValueError, match="unknown colour"):
        TrainConfig.from_dict({"colour": 1})


def test_learning_rate():
    constant = TrainConfig(steps=100, lr=0.1, warmup=4)
    assert [constant.learning_rate(k) for k in (0, 1, 3, 4, 99)] == [0.025, 0.05, 0.1, 0.1, 0.1]
    cosine = replace(constant, decay="cosine", warmup=0)
    assert cosine.learning_rate(0) == 0.1
    assert cosine.learning_rate(50) == pytest.approx(0.05)
    assert cosine.learning_rate(99) < 1e-4


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"data": [1.0]}, TypeError, "data"),
        ({"data": torch.zeros(0, 2)}, ValueError, "data"),
        ({"data": torch.zeros(3)}, ValueError, "data"),
        ({"data": torch.zeros(3, 2).half()}, TypeError, "data"),
        ({"data": torch.full((3, 2), float("nan"))}, ValueError, "data"),
        ({"validation": torch.zeros(3)}, ValueError, "validation"),
        ({"config": replace(CONFIG, t_min=1.5)}, ValueError, "t_min"),
    ],
)
def test_bad_arguments(options, error, word):
    with pytest.raises(error, match=word):
        _trainer(**options)


def test_a_network_without_parameters():
    with pytest.raises(ValueError, match="parameters"):
        Trainer(nn.Identity(), CLD(), _data())


# --- the loop ------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_returns_the_average():
    config = replace(CONFIG, steps=300, batch_size=64, lr=3e-3, parameterization="noise")
    trainer = _trainer(config, data=_data(500))
    before = trainer.validate()
    net = trainer.fit()
    assert trainer.validate() < 0.5 * before
    assert net is trainer.ema.model
    assert trainer.step == 300 and trainer.ema.updates == 300


def test_every_row_is_used_once_an_epoch_in_an_order_of_its_own():
    trainer = _trainer(data=torch.arange(40.0).reshape(20, 2))
    rows = torch.cat([trainer._rows.at(step)[0] for step in range(5)])
    first, second = rows[:20], rows[20:]
    for epoch in (first, second):
        assert torch.equal(epoch[:, 0].sort().values, torch.arange(0.0, 40.0, 2.0))
    assert not torch.equal(first, second)
    # A batch depends on its address alone, also for batches of more than an epoch.
    assert torch.equal(_trainer(data=trainer.data)._rows.at(2)[0], rows[16:24])
    large = _trainer(replace(CONFIG, batch_size=40), data=trainer.data)
    assert torch.equal(large._rows.at(0)[0], rows)


@pytest.mark.parametrize("times", ["uniform", "stratified", "importance"])
def test_accumulation_changes_rounding_only(times):
    whole = _trainer(replace(CONFIG, times=times))
    parts = _trainer(replace(CONFIG, times=times, accumulate=4))
    for _ in range(3):
        a, b = whole.train_step(), parts.train_step()
        assert b == pytest.approx(a, rel=1e-5)
    for p, q in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_seed_decides_the_run():
    a, b, c = (_trainer(replace(CONFIG, seed=seed)).fit() for seed in (0, 0, 1))
    assert _same_weights(a, b)
    assert not _same_weights(a, c)


def test_data_from_a_function_of_the_step():
    asked = []

    def batches(step):
        asked.append(step)
        return _data(8, step)

    _trainer(data=batches).fit(steps=3)
    assert asked == [0, 1, 2]
    with pytest.raises(ValueError, match="8 rows, got 7"):
        _trainer(data=lambda step: _data(7)).fit()
    with pytest.raises(TypeError, match="batch of step 0"):
        _trainer(data=lambda step: None).fit()


def test_labels_go_with_their_rows(tmp_path):
    """The network is given each row's label, in training, validation and after a resume."""
    rows = torch.arange(20.0)[:, None].expand(-1, 2).contiguous()
    labels = torch.arange(20)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.labels = MLPScore(2, width=8, depth=1, time_width=8, classes=20), []

        def forward(self, u, t, labels):
            self.labels.append(labels)
            return self.inner(u, t, labels)

    torch.manual_seed(0)
    data = {"data": (rows, labels), "validation": (rows[:5], labels[:5])}
    config = replace(CONFIG, accumulate=2)
    trainer = Trainer(Net(), CLD(), data["data"], config, validation=data["validation"])
    seen, parts = trainer._rows.at(1), trainer.net.labels
    assert torch.equal(seen[0][:, 0].long(), seen[1])
    trainer.train_step()
    assert torch.equal(torch.cat(parts), trainer._rows.at(0)[1])
    trainer.validate()
    assert torch.equal(trainer.ema.model.labels[-1], labels[:5])
    with pytest.raises(ValueError, match="labels of shape"):
        Trainer(Net(), CLD(), (rows, labels[:3]), CONFIG)


def test_denoising_score_matching_is_the_loss_of_dsm():
    config = replace(CONFIG, objective="dsm", parameterization="mixed", steps=1, accumulate=2)
    trainer = _trainer(config)
    rows, at = trainer._rows.at(0)[0], trainer._coefficients.at(0).t
    wanted = dsm_loss(trainer.net, CLD(), rows, parameterization="mixed", seed=0, t=at)
    assert trainer.train_step()[0] == pytest.approx(wanted.item(), rel=1e-5)


def test_validation_noise_is_fixed_and_the_training_is_not_touched():
    watched, plain = _trainer(), _trainer(validation=None)
    assert watched.validate() == watched.validate()
    assert _same_weights(watched.fit(), plain.fit())
    with pytest.raises(ValueError, match="validation"):
        plain.validate()


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_autocast(half):
    """Half precision in the network only: weights and average stay float32, losses are close."""
    plain, mixed = (_trainer(replace(CONFIG, autocast=name, steps=30)) for name in (None, half))
    losses = [[trainer.train_step()[0] for _ in range(30)] for trainer in (plain, mixed)]
    assert losses[0] != losses[1]
    # A few layers' rounding in each residual, and in each update of the weights before.
    assert losses[1] == pytest.approx(losses[0], rel=20 * torch.finfo(getattr(torch, half)).eps)
    assert all(p.dtype == torch.float32 for p in mixed.ema.model.parameters())


def test_coefficients_ahead_do_not_depend_on_where_a_run_begins():
    """Blocks of steps begin at their multiples: a resumed run reads the numbers of a whole one."""
    sde, config = CLD(), replace(CONFIG, batch_size=1000, times="stratified")
    ahead, late = (CoefficientsAhead(sde, config, "mixed", torch.device("cpu")) for _ in range(2))
    steps = [ahead.at(step) for step in range(10)]
    for step in (7, 2, 9):
        again = late.at(step)
        assert torch.equal(steps[step].t, again.t)
        for name in ("perturbation", "residual"):
            mine, other = getattr(steps[step], name), getattr(again, name)
            assert mine.table is other.table and torch.equal(mine.t, other.t)
    t, _ = sample_times(
        1000, CLD(), t_min=config.t_min, method="stratified", first_index=7000, seed=0
    )
    assert torch.equal(steps[7].t, t)


def test_clipping():
    loose, tight = (_trainer(replace(CONFIG, clip=clip, warmup=0)) for clip in (None, 1e-3))
    assert loose.train_step() == tight.train_step()  # the norm before clipping
    norms = [
        torch.cat([p.grad.flatten() for p in t.net.parameters()]).norm() for t in (loose, tight)
    ]
    assert norms[0] > 0.01 and norms[1] == pytest.approx(1e-3, rel=1e-4)


# --- the log -------------------------------------------------------------------------------------


def test_log(tmp_path):
    trainer = _trainer(folder=tmp_path)
    trainer.fit()
    rows = read_rows(tmp_path / LOG)
    assert [row["step"] for row in rows] == [5, 6, 10, 12]
    assert [row["validation_loss"] is not None for row in rows] == [False, True, False, True]
    assert rows[-1]["validation_loss"] == trainer.validate()
    assert rows[-1]["lr"] == 1e-2
    # Rows hold means over all steps since the row before.
    again = _trainer()
    losses = [again.train_step()[0] for _ in range(12)]
    assert rows[0]["loss"] == pytest.approx(sum(losses[:5]) / 5)
    assert rows[2]["loss"] == pytest.approx(sum(losses[6:10]) / 4)


def test_log_keeps_whole_rows_up_to_a_step(tmp_path):
    path = tmp_path / LOG
    header = ",".join(COLUMNS)
    path.write_text(f"{header}\n5,1.0,2.0,3.0,0.1,\n6,x\n10,1.0,2.0,3.0,0.1,4.5\n12,1.0,2")
    TrainLog(path).cut(8)
    assert path.read_text() == f"{header}\n5,1.0,2.0,3.0,0.1,\n"
    path.write_text("something else\n1\n")
    assert read_rows(path) == []
    assert read_rows(tmp_path / "none") == []


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_resume_is_exact(tmp_path, stop):
    whole = _trainer(folder=tmp_path / "whole")
    whole.fit()
    _trainer(folder=tmp_path / "cut").fit(steps=stop)
    resumed = _trainer(folder=tmp_path / "cut", resume=True)
    assert resumed.step == stop - stop % 4
    resumed.fit()
    assert _same_weights(whole.net, resumed.net)
    assert _same_weights(whole.ema.model, resumed.ema.model)
    assert _without_seconds(tmp_path / "whole" / LOG) == _without_seconds(tmp_path / "cut" / LOG)


def test_resume_is_exact_with_random_layers(tmp_path):
    def trainer(folder, resume=False):
        torch.manual_seed(3 if not resume else 4)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, u, t):
                return self.net(u)

        return Trainer(Net(), CLD(), _data(), CONFIG, folder=folder, resume=resume)

    whole = trainer(tmp_path / "whole")
    whole.fit()
    trainer(tmp_path / "cut").fit(steps=6)
    resumed = trainer(tmp_path / "cut", resume=True)
    resumed.fit()
    assert _same_weights(whole.net, resumed.net)


def test_an_existing_run_is_not_overwritten(tmp_path):
    _trainer(folder=tmp_path).fit(steps=4)
    with pytest.raises(ValueError, match="exists"):
        _trainer(folder=tmp_path)


def test_more_steps_can_be_asked_for_but_no_other_settings(tmp_path):
    _trainer(folder=tmp_path).fit()
    longer = replace(CONFIG, steps=20)
    trainer = _trainer(longer, folder=tmp_path, resume=True)
    trainer.fit()
    assert trainer.step == 20
    assert _same_weights(trainer.net, _trainer_after(longer))
    with pytest.raises(ValueError, match="another settings"):
        _trainer(replace(CONFIG, lr=1.0), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="another data"):
        _trainer(folder=tmp_path, resume=True, data=_data(21))
    loose = _trainer(replace(CONFIG, lr=1.0))
    loose.load(tmp_path / CHECKPOINT, strict=False)
    assert loose.step == 20


def _trainer_after(config):
    trainer = _trainer(config)
    trainer.fit()
    return trainer.net


def test_broken_checkpoints(tmp_path):
    _trainer(folder=tmp_path).fit(steps=4)
    path = tmp_path / CHECKPOINT
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        _trainer(folder=tmp_path, resume=True)
    path.write_bytes(data)
    other = MLPScore(2, width=16, depth=1, time_width=8)
    with pytest.raises(ValueError, match="does not fit this network") as caught:
        Trainer(other, CLD(), _data(), CONFIG, folder=tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_no_pickle_in_a_checkpoint(tmp_path):
    _trainer(folder=tmp_path).fit()
    tensors, metadata = read_tensors(tmp_path / CHECKPOINT)
    assert metadata["step"] == 12
    assert {name.split("/")[0] for name in tensors} == {"model", "ema", "optimizer", "rng"}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CHECKPOINT, LOG])


def test_non_finite_loss_stops_and_keeps_the_state_before(tmp_path):
    def batches(step):
        rows = _data(8, step)
        return rows * 1e30 if step == 6 else rows

    trainer = _trainer(data=batches, folder=tmp_path)
    with pytest.raises(NonFiniteLoss, match="step 7: loss inf") as caught:
        trainer.fit()
    error = caught.value
    assert error.step == 7 and error.saved == tmp_path / FAILED
    assert 1e-3 <= error.t_range[0] < error.t_range[1] <= 1.0
    # Not a weight was touched by the bad step, and training can go on from the state kept.
    reference = _trainer(data=lambda step: _data(8, step))
    reference.fit(steps=6)
    other = _trainer(data=lambda step: _data(8, step))
    other.load(error.saved)
    assert _same_weights(other.net, reference.net)
    assert other.step == 6


def _ahead_of_the_device(trainer, steps=8):
    """As on a device that the host runs ahead of."""
    trainer._most_unread, trainer._update.waits = steps, False
    return trainer


def test_steps_read_later_are_the_same(tmp_path):
    whole = _trainer(folder=tmp_path / "whole")
    late = _ahead_of_the_device(_trainer(folder=tmp_path / "late"))
    for a, b in zip(
        whole.fit().state_dict().values(), late.fit().state_dict().values(), strict=True
    ):
        # Three roundings in place of one fused one, in each of 12 updates.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    rows = [read_rows(tmp_path / name / LOG) for name in ("whole", "late")]
    for a, b in zip(*rows, strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_bad_step_seen_later_has_changed_nothing(tmp_path):
    def batches(step):
        rows = _data(8, step)
        return rows * 1e30 if step == 6 else rows

    config = replace(CONFIG, log_every=50, checkpoint_every=50, validate_every=50)
    trainer = _ahead_of_the_device(_trainer(config, data=batches, folder=tmp_path))
    with pytest.raises(NonFiniteLoss, match="step 7: loss inf") as caught:
        trainer.fit()
    assert caught.value.step == 7 and trainer.step == 6 and trainer.ema.updates == 6
    reference = _trainer(config, data=lambda step: _data(8, step))
    reference.fit(steps=6)
    other = _ahead_of_the_device(_trainer(config, data=lambda step: _data(8, step)))
    other.load(caught.value.saved)
    for net, expected in ((other.net, reference.net), (other.ema.model, reference.ema.model)):
        for p, q in zip(net.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    # And training goes on from there, here and in the trainer that saw it.
    trainer._rows = other._rows
    assert _same_weights(trainer.fit(), other.fit())


# --- kills ---------------------------------------------------------------------------------------

# It saves after every other step, so a kill at a random moment is often a kill while writing.
_SCRIPT = """
import sys, torch
from cldfast import CLD
from cldfast.lab.models import MLPScore
from cldfast.training import TrainConfig, Trainer
torch.set_num_threads(1)
torch.manual_seed(0)
net = MLPScore(2, width=64, depth=2)
data = torch.randn(100, 2)
config = TrainConfig(steps=60, batch_size=16, warmup=5, log_every=5, checkpoint_every=2)
trainer = Trainer(net, CLD(), data, config, folder=sys.argv[1], resume=True)
print("ready", flush=True)
while trainer.step < config.steps:
    trainer.fit(steps=trainer.step + 1)
    print(trainer.step, flush=True)
"""


def _start(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(folder)], stdout=subprocess.PIPE, env=os.environ
    )
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_runs_go_on_as_if_nothing_had_happened(tmp_path):
    process = _start(tmp_path / "whole")
    process.communicate()
    assert process.returncode == 0
    moment = random.Random(0)
    for _ in range(3):
        process = _start(tmp_path / "killed")
        for _ in range(moment.randrange(1, 18)):
            process.stdout.readline()
        # Anywhere in the next steps, of which every other one writes the checkpoint.
        time.sleep(moment.uniform(0.0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = _start(tmp_path / "killed")
    process.communicate()
    assert process.returncode == 0
    whole, killed = (read_tensors(tmp_path / name / CHECKPOINT) for name in ("whole", "killed"))
    assert whole[1]["step"] == killed[1]["step"] == 60
    assert whole[0].keys() == killed[0].keys()
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, killed[0][name]), name
    assert _without_seconds(tmp_path / "whole" / LOG) == _without_seconds(tmp_path / "killed" / LOG)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted([CHECKPOINT, LOG])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one(tmp_path):
    """The process kills itself between writing the file and renaming it."""
    code = _SCRIPT.replace(
        "print(",
        "import os, signal\nos.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\nprint(",
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = {p.name for p in tmp_path.iterdir()}
    assert any(name.endswith(".tmp") for name in names)
    assert read_tensors(tmp_path / CHECKPOINT)[1]["step"] == 0
    process = _start(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {CHECKPOINT, LOG}
