"""Run folders, plans and checkpoints of a stranger who wants memory, time, other files or a crash."""

from __future__ import annotations

import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cldfast import CLD, make_plan
from cldfast.app.cli import main
from cldfast.app.new_run import run_config
from cldfast.app.runs import train_run
from cldfast.compat import cld_sgm
from cldfast.files import located

HUGE = 10**9


def write_folder(folder: Path) -> None:
    """A whole run folder, by four steps of training, with a plan of three evaluations."""
    options = {"steps": 4, "width": 8, "depth": 1, "rows": 64, "batch_size": 8}
    config = run_config({"data": "two_points", **options})
    train_run(folder, config)
    (folder / "plans").mkdir()
    plan = make_plan(CLD(), "multistep", 3, parameterization=config.form)
    plan.save(folder / "plans" / "3.json", {"shape": list(config.shape)})


def refused(folder: Path, command: str) -> int:
    """The exit code of a command that reads the folder."""
    if command == "pickle":
        try:
            cld_sgm.load_checkpoint(folder / "model.pth")
        except ValueError as error:
            print(located(folder, error), file=sys.stderr)
            return 2
        return 0
    arguments = {
        "sample": ["sample", str(folder), "-n", "2", "--steps", "3", "--no-picture"],
        "resume": ["train", "--resume", "--out", str(folder), "--quiet", "--steps", "6"],
        "fit": ["fit", str(folder), "--evaluations", "3", "--steps", "1", "--quiet"],
    }[command]
    return main(arguments)


Case = Callable[[Path], None]
# Name of a case -> command, and what was done to the folder.
CASES: dict[str, tuple[str, Case]] = {}


def case(name: str, command: str = "sample") -> Callable[[Case], Case]:
    def enter(change: Case) -> Case:
        CASES[name] = command, change
        return change

    return enter


def _change(values: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


def _json(name: str, file: str, path: tuple[Any, ...], value: Any, command: str = "sample") -> None:
    """A case in which one value of a JSON file is another."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        _change(values, path, value)
        (folder / file).write_text(json.dumps(values))

    CASES[name] = command, change


def _bytes(name: str, file: str, data: Callable[[], bytes], command: str = "sample") -> None:
    CASES[name] = command, lambda folder: (folder / file).write_bytes(data()) and None


CONFIG, MODEL, PLAN = "config.json", "model.safetensors", "plans/3.json"

# --- the description asks for memory or time ---------------------------------------------------------
_json("width of 1e9", CONFIG, ("model", "width"), HUGE)
_json("width of 1e18", CONFIG, ("model", "width"), 10**18)
_json("width beyond 64 bits", CONFIG, ("model", "width"), 2**64 - 1)
_json("depth of 1e9", CONFIG, ("model", "depth"), HUGE)
_json("dim of 1e9", CONFIG, ("model", "dim"), HUGE)
_json("time_width of 1e9", CONFIG, ("model", "time_width"), HUGE)
_json("classes of 1e12", CONFIG, ("model", "classes"), 10**12)
_json("a U-Net of 1e9 blocks", CONFIG, ("model",), {"kind": "unet", "blocks": HUGE})
_json("a U-Net of 1e5 levels", CONFIG, ("model",), {"kind": "unet", "multipliers": [1] * 100_000})
_json("a U-Net of width 8e9", CONFIG, ("model",), {"kind": "unet", "width": 8 * HUGE})
_json("samples of 1e12 numbers", CONFIG, ("shape",), [10**12])
_json("images of 1e9 x 1e9", CONFIG, ("shape",), [1, HUGE, HUGE])
_json("another shape than the network's", CONFIG, ("shape",), [3])
_json("1e12 rows of data", CONFIG, ("data", "rows"), 10**12, "fit")
_json("data of dimension 1e12", CONFIG, ("data", "dim"), 10**12, "fit")
_json("a batch of text", CONFIG, ("train", "batch_size"), "1" * 1000, "resume")
_json("a name of a megabyte", CONFIG, ("model", "kind"), "k" * (1 << 20))
_json("a name that moves the cursor", CONFIG, ("model", "\x1b[2J\x1b[31mred"), 1)
_json("a list for a name", CONFIG, ("sde", "kind"), ["cld"])
_json("an unknown key", CONFIG, ("code",), "import os")
_json("an unknown key of the process", CONFIG, ("sde", "__class__"), "os.system")
_json("an unknown key of the training", CONFIG, ("train", "hook"), "os.system")
_json("another form than the network's", CONFIG, ("parameterization",), "full_score")
_json("a text for an array", CONFIG, ("sde",), {"kind": "linear", "A": "1", "D": [1], "v0_var": 1})

# --- broken and enormous JSON ------------------------------------------------------------------------
_bytes("JSON of depth 100,000", CONFIG, lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
_bytes("JSON of depth 100", CONFIG, lambda: b'{"a":' + b"[" * 100 + b"]" * 100 + b"}")
_bytes("ten million lists", CONFIG, lambda: b'{"a":[' + b"[]," * 5_000_000 + b"[]]}")
_bytes("a number of a million digits", CONFIG, lambda: b'{"t_min":' + b"9" * 1_000_000 + b"}")
_bytes("a number beyond float64", CONFIG, lambda: b'{"t_min": 1e999}')
_bytes("NaN", CONFIG, lambda: b'{"t_min": NaN}')
_bytes("a key twice", CONFIG, lambda: b'{"shape": [1], "shape": [2]}')
_bytes("bytes that are no text", CONFIG, lambda: b"\xff\xfe" * 1000)
_bytes("an empty file", CONFIG, lambda: b"")


@case("a config of a terabyte")
def _(folder: Path) -> None:
    os.truncate(folder / CONFIG, 1 << 40)


# --- plans -------------------------------------------------------------------------------------------
_json("a plan of an unknown version", PLAN, ("version",), 10**6)
_json("a plan with an unknown key", PLAN, ("code",), "import os")
_json("a plan whose solver moves the cursor", PLAN, ("solver",), "em\x1b[2J")
_json("a plan whose grid is no list", PLAN, ("grid",), {"__len__": HUGE})
_json("a plan of a matrix of one row", PLAN, ("stages", 0, "P"), [[1.0, 0.0]])
_json("a plan that reads history nobody kept", PLAN, ("stages", 0, "H"), [[[1.0], [1.0]]] * 9)
_json("a plan with a number beyond float64", PLAN, ("stages", 0, "P", 0, 0), 10**400)
_bytes("a plan of depth 100,000", PLAN, lambda: b'{"a":' * 100_000)


@case("a plan of a terabyte")
def _(folder: Path) -> None:
    os.truncate(folder / PLAN, 1 << 40)


# --- links, pipes and devices ------------------------------------------------------------------------
def _link(name: str, file: str, target: str, command: str = "sample") -> None:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    CASES[name] = command, change


_link("a config that is a link out", CONFIG, "/etc/hostname")
_link("a config that is a link to itself", CONFIG, CONFIG)
_link("a config that is an endless device", CONFIG, "/dev/zero")
_link("weights that are a link out", MODEL, "../other.safetensors")
_link("a plan that is a link out", PLAN, "../../other.json")
_link("a checkpoint that is an endless device", "checkpoint.safetensors", "/dev/zero", "resume")


@case("a config that is a pipe")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


@case("a config that is a folder")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


@case("plans that are a folder elsewhere", "resume")
def _(folder: Path) -> None:
    (folder / PLAN).rename(folder / "3.json")
    (folder / "plans").rmdir()
    (folder / "plans").symlink_to("..")


# --- weights -----------------------------------------------------------------------------------------
def _header(
    name: str,
    change: Callable[[dict[str, Any]], Any],
    command: str = "sample",
    file: str = MODEL,
    data: int | None = None,
) -> None:
    """A case in which the header of a safetensors file is another; data: bytes that follow it."""

    def edit(folder: Path) -> None:
        old = (folder / file).read_bytes()
        (length,) = struct.unpack("<Q", old[:8])
        header = json.loads(old[8 : 8 + length])
        header = change(header) or header
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        rest = old[8 + length :]
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + rest)
        if data is not None:
            os.truncate(folder / file, 8 + len(text) + data)

    CASES[name] = command, edit


def _resized(header: dict[str, Any], shape: list[int], size: int) -> None:
    first = next(name for name in header if name != "__metadata__")
    header[first] |= {"shape": shape, "data_offsets": [0, size]}


_header("weights of another shape", lambda h: _resized(h, [2**40], 2**42))
_header("a weight of 1e6 dimensions", lambda h: _resized(h, [10**18] * 1_000_000, 4))
_header("a weight of negative size", lambda h: _resized(h, [-1], -4))
_header("a sparse terabyte", lambda h: _resized(h, [2**38], 2**40), data=1 << 40)
_header("weights too many", lambda h: h.update(more=dict(h["last.bias"])))
_header("weights too few", lambda h: h.pop("last.bias") and None)
_header("whole numbers for weights", lambda h: h["last.bias"].update(dtype="I32"))
_header("an unknown dtype", lambda h: h["last.bias"].update(dtype="O"))
_header("a header of depth 100,000", lambda h: b'{"a":' * 100_000)
_header("offsets that overlap", lambda h: h["last.bias"].update(data_offsets=[0, 4]))
_bytes("a header of 2^63 bytes", MODEL, lambda: struct.pack("<Q", 2**63) + b"{}")
_bytes("a header of all its bytes", MODEL, lambda: struct.pack("<Q", 16 << 20) + bytes(16 << 20))
_bytes("a file of 4 bytes", MODEL, lambda: b"\0" * 4)
_header("a checkpoint with a sparse terabyte", lambda h: _resized(h, [2**38], 2**40), "resume",
        "checkpoint.safetensors", 1 << 40)  # fmt: skip
_header("a checkpoint of step minus one", lambda h: _metadata(h, step=-1), "resume",
        "checkpoint.safetensors")  # fmt: skip
_header("a checkpoint whose step is a list", lambda h: _metadata(h, step=[4]), "resume",
        "checkpoint.safetensors")  # fmt: skip
_header("a checkpoint whose metadata are no JSON", lambda h: {**h, "__metadata__": {"cldfast": "["}},
        "resume", "checkpoint.safetensors")  # fmt: skip


def _metadata(header: dict[str, Any], **values: Any) -> None:
    ours = json.loads(header["__metadata__"]["cldfast"]) | values
    header["__metadata__"]["cldfast"] = json.dumps(ours)


@case("a pickle for weights")
def _(folder: Path) -> None:
    torch.save({"last.bias": torch.zeros(1)}, folder / MODEL)


# --- pickles of other codebases ----------------------------------------------------------------------
class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _pickle(name: str, save: Callable[[Path], object]) -> None:
    CASES[name] = "pickle", lambda folder: save(folder / "model.pth") and None


_pickle(
    "a pickle that runs a command", lambda p: torch.save({"model": Runs(os.system, "exit 3")}, p)
)
_pickle("a pickle that takes 1e12 bytes", lambda p: torch.save({"a": Runs(bytearray, 10**12)}, p))
_pickle(
    "a pickle of a tensor of 1e12", lambda p: torch.save({"a": Runs(torch.FloatTensor, 10**12)}, p)
)
_pickle(
    "a pickle of the old format",
    lambda p: torch.save({"a": torch.ones(3)}, p, _use_new_zipfile_serialization=False),
)
_pickle("a pickle that is cut", lambda p: p.write_bytes(b"PK\3\4" + bytes(500)))


@case("a bomb of zeros", "pickle")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(1 << 24))


@case("a pickle of a million operations", "pickle")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + b"]" * 1_000_000 + b".")
