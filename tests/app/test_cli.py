"""The command line: what it makes, and one line with exit code 2 for what it cannot."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from cldfast import CLD, PSLD, CosineBeta, ExponentialBeta, LinearBeta, LinearPhaseSDE
from cldfast.app import cli
from cldfast.app.cli import main
from cldfast.app.commands import bench, info
from cldfast.app.new_run import run_config
from cldfast.app.training_data import training_data
from cldfast.files import read_json
from cldfast.lab.models import MLPScore
from cldfast.model.run_folder import RunConfig, load_config, load_run, save_run
from cldfast.planner.data_forms import Preconditioned
from cldfast.training.log import read_rows
from cldfast.version import __version__

SMALL = ["--width", "8", "--depth", "1", "--rows", "200", "--batch-size", "16", "--steps", "6"]
PNG = b"\x89PNG\r\n\x1a\n"


def _refused(capsys, arguments, *words):
    """Exit code 2, nothing on stdout, one line on stderr that holds the words."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("cldfast: error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "funnel"
    assert main(["train", "funnel", "--out", str(folder), "--dim", "3", *SMALL]) == 0
    return folder


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["", *(module.__name__.rpartition(".")[2] for module in cli.COMMANDS)]
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: cldfast {command}".rstrip() in text
    assert not command or f"examples:\n  cldfast {command}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"cldfast {__version__}\n"


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "cldfast", "sample", "no-such-run"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "cldfast: error: no-such-run: expected a run folder, found nothing\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "command"), (["fly"], "fly"), (["train", "funnel"], "--out"),
        (["sample"], "run"),
        (["sample", "x", "-n", "many"], "many"), (["demo", "--colour"], "--colour"),
    ],
)  # fmt: skip
def test_usage_errors(arguments, word, capsys):
    _refused(capsys, arguments, word, "--help")


# --- train ---------------------------------------------------------------------------------------


def test_train_leaves_a_run(run):
    net, sde, config = load_run(run)
    assert sde.config() == CLD().config()
    assert config.shape == (3,) and config.parameterization == "edm"
    own = {"name": "funnel", "dim": 3, "scale": 1.0, "rows": 200, "seed": 0}
    assert config.data is not None and config.data.items() >= own.items()
    rows = training_data(own).rows.double()
    assert config.data["standardised"]["mean"] == pytest.approx(rows.mean(0).tolist())
    assert config.data["standardised"]["std"] == pytest.approx(rows.std(0).tolist())
    assert config.form == Preconditioned(1.0) and net.in_planes == 1
    assert config.train is not None and config.train["steps"] == 6
    metrics = read_json(run / "metrics.json")
    assert metrics["steps"] == 6 and np.isfinite(metrics["validation_loss"])
    assert (run / "loss.png").read_bytes()[:8] == PNG
    assert read_rows(run / "train.csv")[-1]["step"] == 6
    assert any(bool((p != 0).any()) for p in net.last.parameters())


def test_train_again_and_resume(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["two_points", *SMALL, "--checkpoint-every", "2"]
    assert main(["train", *options, "--steps", "10", "--out", str(whole)]) == 0
    assert main(["train", *options, "--out", str(cut)]) == 0
    capsys.readouterr()
    _refused(capsys, ["train", *options, "--out", cut], "has a run already")
    _refused(capsys, ["train", "--resume", "--out", cut, "--lr", "1"], "not also: lr")
    _refused(capsys, ["train", "funnel", "--resume", "--out", cut], "not also: data")
    _refused(capsys, ["train", "--resume", "--out", tmp_path / "no"], "found nothing")
    _refused(capsys, ["train", "--resume", "--out", cut, "--steps", "3"], "after 6 steps")
    assert load_config(cut).train["steps"] == 6
    assert main(["train", "--resume", "--out", str(cut), "--steps", "10"]) == 0
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert load_config(cut) == load_config(whole)


@pytest.mark.parametrize(
    ("options", "process"),
    [
        ({"a": 1.0, "sigma": 1.5, "x_noise": 0.25}, CLD(a=1.0, sigma=1.5, x_noise=0.25)),
        ({"v0_var": 0.3, "beta": 2.0}, CLD(v0_var=0.3, beta=2.0)),
        ({"mass_inv": 9.0, "gamma": 0.1}, CLD.from_mass(9.0, 0.1)),
        ({"process": ["psld", "kappa=0.1"], "T": 2.0}, PSLD(kappa=0.1, T=2.0)),
        ({"schedule": ["cosine", "scale=2"], "T": 0.5}, CLD(beta=CosineBeta(2.0, T=0.5), T=0.5)),
        ({"schedule": ["exponential", "beta_min=1", "delta=2"]}, CLD(beta=ExponentialBeta(1, 2))),
        ({"beta": 1.0, "beta_end": 9.0, "T": 2.0}, CLD(beta=LinearBeta(1.0, 9.0, 2.0), T=2.0)),
        (
            {"process": ["linear", "A=[[0,4],[-1,-4]]", "D=[0,4]"]},
            LinearPhaseSDE([[0, 4], [-1, -4]], [0, 4]),
        ),
    ],
)
def test_process_options(options, process):
    given = {"data": "funnel", **options}
    assert run_config(given).sde == process.config()


def test_more_options():
    given = {"data": "digits", "parameterization": "full_score", "clip": 0.0, "beta_end": 8.0}
    config = run_config(given)
    assert config.model["kind"] == "unet" and config.model["out_channels"] == 2
    assert config.train is not None and config.train["clip"] is None
    assert config.sde["beta"] == {"kind": "linear", "beta_min": 4.0, "beta_max": 8.0, "T": 1.0}
    mlp = run_config({"data": "swiss_roll", "parameterization": "full_noise", "depth": 2})
    assert mlp.model["out_dim"] == 4 and mlp.model["depth"] == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["funnel", "--steps", "0"], "steps"), (["funnel", "--dim", "1"], "dim"),
        (["diamonds", "--dim", "5"], "dimension 2"), (["funnel", "--a", "-1"], "a must"),
        (["funnel", "--a", "2", "--gamma", "1"], "--gamma"), (["funnel", "--t-min", "3"], "t_min"),
        (["funnel", "--rows", "0"], "sample"), (["funnel", "--scale", "0"], "scale"),
        (["funnel", "--width", "0"], "width"), (["digits", "--depth", "2"], "--depth"),
        (["digits", "--rows", "9"], "--rows"), (["funnel", "--seed", "-1"], "seed"),
        (["funnel", "--threads", "0"], "threads"), (["funnel", "--beta", "nan"], "nan"), ([], "data"),
        (["funnel", "--device", "tpu"], "--device tpu"), (["funnel", "--objective", "dsm", "--parameterization", "edm"], "dsm"),
        (["funnel", "--process", "psld", "kapa=1"], "psld"), (["funnel", "--process", "psld", "--a", "1"], "--a, not both"),
        (["funnel", "--schedule", "wavy"], "wavy"), (["funnel", "--schedule", "cosine", "x"], "name=value"),
        (["funnel", "--schedule", "cosine", "--beta", "1"], "--beta, not both"),
    ],
)  # fmt: skip
def test_bad_training_leaves_nothing(options, word, tmp_path, capsys):
    _refused(capsys, ["train", *options, "--out", tmp_path / "run"], word)
    assert list(tmp_path.iterdir()) == []


def test_training_that_blows_up(tmp_path, capsys):
    options = ["funnel", *SMALL, "--scale", "1e30", "--parameterization", "mixed"]
    options += ["--out", str(tmp_path / "run")]
    _refused(capsys, ["train", *options], "step 1", "failed.safetensors")


# --- sample --------------------------------------------------------------------------------------


def test_sample(run, tmp_path, capsys):
    out = tmp_path / "points.npz"
    arguments = ["sample", str(run), "-n", "10", "--steps", "4", "--seed", "3", "--out", str(out)]
    assert main(arguments) == 0
    assert str(out) in capsys.readouterr().out
    with np.load(out) as file:  # allow_pickle is off
        samples, settings = file["samples"], json.loads(str(file["settings"]))
    assert samples.shape == (10, 3) and samples.dtype == np.float32
    assert settings["seed"] == 3 and settings["t_min"] == 1e-3
    assert (tmp_path / "points.png").read_bytes()[:8] == PNG
    # Batches and shards put together are the same samples.
    parts = []
    for first in (0, 5):
        part = tmp_path / f"{first}.npz"
        shard = ["-n", "5", "--first-index", str(first), "--batch-size", "2", "--no-picture"]
        assert main([*arguments[:4], *arguments[4:8], *shard, "--out", str(part)]) == 0
        with np.load(part) as file:
            parts.append(file["samples"])
    np.testing.assert_allclose(np.concatenate(parts), samples, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "0.png").exists()


def test_sample_with_options_and_by_the_flow(run, tmp_path, capsys):
    out = tmp_path / "points.npz"
    arguments = ["sample", str(run), "-n", "6", "--no-picture", "--out", str(out)]
    assert main([*arguments, "--solver", "multistep", "--option", "order=3", "form=R"]) == 0
    with np.load(out) as file:
        settings = json.loads(str(file["settings"]))
    assert settings["order"] == 3 and settings["form"] == "R" and settings["steps"] == 20
    pytest.importorskip("torchdiffeq")
    assert main([*arguments, "--solver", "pflow", "--tolerance", "1e-3"]) == 0
    with np.load(out) as file:
        samples, settings = file["samples"], json.loads(str(file["settings"]))
    assert samples.shape == (6, 3) and settings["evaluations"] > 10 and settings["rtol"] == 1e-3
    assert settings["solver"] == "pflow" and "steps" not in settings


def test_samples_are_in_the_units_of_the_data(tmp_path):
    torch.manual_seed(0)
    net = MLPScore(1, width=8, depth=1, time_width=8)
    values = []
    scales = ({"scale": 1.0}, {"scale": 4.0}, {"standardised": {"mean": [3.0], "std": [0.5]}})
    for number, scale in enumerate(scales):
        config = RunConfig(CLD().config(), net.config(), (1,), "noise", data=scale)
        folder = save_run(tmp_path / str(number), net, config)
        assert main(["sample", str(folder), "-n", "5", "--steps", "3"]) == 0
        with np.load(folder / "samples.npz") as file:
            values.append(file["samples"])
        assert not (folder / "samples.png").exists()  # nothing to draw in one dimension
    np.testing.assert_allclose(values[0], 4.0 * values[1], rtol=1e-6)
    np.testing.assert_allclose(0.5 * values[0] + 3.0, values[2], rtol=1e-6)


def test_the_parameterisation_decides_what_the_network_sees(tmp_path, capsys):
    for name, planes in (("edm", 1), ("denoiser", 1), ("data_noise", 2), ("full_noise", 2)):
        folder = tmp_path / name
        options = ["--out", str(folder), "--parameterization", name, "--x-noise", "0.25"]
        assert main(["train", "gaussians25", *SMALL, *options]) == 0
        net, _, _ = load_run(folder)
        assert net.in_planes == planes and net.out_dim == (4 if name == "full_noise" else 2)
        assert main(["sample", str(folder), "-n", "5", "--steps", "3", "--no-picture"]) == 0
    plain = tmp_path / "plain"
    options = ["--out", str(plain), "--no-standardise", "--uncertainty"]
    assert main(["train", "gaussians25", *SMALL, *options]) == 0
    config = load_config(plain)
    deviation = float(training_data(config.data).rows.double().std())
    assert config.form.sigma_data == pytest.approx(deviation) and not config.standardised
    capsys.readouterr()
    both = ["--out", tmp_path / "both", "--scale", "2", "--standardise"]
    _refused(capsys, ["train", "gaussians25", *SMALL, *both], "--scale or --standardise")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["-n", "0"], "-n"), (["--steps", "0"], "steps"), (["--grid", "cubic"], "cubic"),
        (["--solver", "magic"], "magic"), (["--t-min", "-1"], "t_min"), (["--seed", "-4"], "seed"),
        (["--batch-size", "0"], "batch_size"), (["--backend", "gpu"], "gpu"),
        (["--out", "x.txt"], ".npz"), (["--out", "no/such/folder/x.npz"], "does not exist"),
        (["--first-index", "-1"], "first_index"), (["--tolerance", "1e-3"], "--tolerance"),
        (["--solver", "pflow", "--steps", "9"], "--steps"), (["--option", "order"], "name=value"),
        (["--option", "magic=3"], "takes no option 'magic'"), (["--option", "seed=3"], "seed=3"),
    ],
)  # fmt: skip
def test_bad_sampling_leaves_nothing(options, word, run, capsys):
    before = sorted(p.name for p in run.iterdir())
    _refused(capsys, ["sample", run, *options], word)
    assert sorted(p.name for p in run.iterdir()) == before


def test_samples_that_diverge_are_not_written(tmp_path, capsys):
    net = MLPScore(2, width=8, depth=1, time_width=8)
    torch.nn.init.constant_(net.last.bias, 3e38)
    config = RunConfig(CLD().config(), net.config(), (2,), "x0")
    folder = save_run(tmp_path / "run", net, config)
    _refused(capsys, ["sample", folder, "-n", "3", "--steps", "3"], "3 of 3 samples diverged")
    assert not (folder / "samples.npz").exists()


# --- the rest ------------------------------------------------------------------------------------


def test_info(capsys):
    assert main(["info"]) == 0
    assert "backends:" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert "versions" in json.loads(capsys.readouterr().out)


def test_bench_gets_its_options(monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "run_bench", seen.append)
    assert main(["bench", "--quick", "--cases", "a", "b"]) == 0
    assert seen[0].quick and seen[0].cases == ["a", "b"]
    assert seen[0].threads is None and seen[0].out is None


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "cldfast: interrupted\n"),
        (ImportError("needs x"), 2, "cldfast: error: needs x\n"),
        (FileNotFoundError(2, "no such file", "y"), 2, "cldfast: error: [Errno 2] no such file: 'y'\n"),
        (ValueError("one\n  two"), 2, "cldfast: error: one two\n"),
    ],
)  # fmt: skip
def test_exit_codes(error, code, text, monkeypatch, capsys):
    def fail(args: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(info, "run", fail)
    assert main(["info"]) == code
    assert capsys.readouterr().err == text


def test_missing_extra(monkeypatch, run, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _refused(capsys, ["sample", run], "matplotlib", "pip install 'cldfast[demo]'")
    _refused(capsys, ["demo", "--out", run / "demo"], "sklearn", "matplotlib")
    assert not (run / "demo").exists()


@pytest.mark.parametrize("files", ["safetensors", "npy"])
def test_sample_to_a_folder_of_shards(files, run, tmp_path, capsys):
    command = ["sample", str(run), "-n", "50", "--steps", "3", "--quiet", "--shard-rows", "20"]
    command += ["--call-rows", "8", "--files", files]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "50 samples in 3 shards, 3 by this process" in capsys.readouterr().out
    for numbers in (["1-2"], ["0", "2"]):
        more = ["--batch-size", "9", "--shards", *numbers]
        assert main([*command, "--out", str(tmp_path / "b"), *more]) == 0
        made = {"1-2": 2, "0": 1}[numbers[0]]
        assert f"3 shards, {made} by this process" in capsys.readouterr().out
    for numbers, word in (
        ("3", "from 0 to 2"),
        ("2-1", "all, or numbers"),
        ("x", "all, or numbers"),
    ):
        assert main([*command, "--out", str(tmp_path / "b"), "--shards", numbers]) == 2
        assert word in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == (2 if files == "npy" else 4)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "3 shards, 0 by this process" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "a"), "--seed", "1"]) == 2
    assert "made with seed = 0, not 1" in capsys.readouterr().err
