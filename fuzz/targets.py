"""What is fuzzed: functions of bytes that may refuse them, by ValueError or TypeError alone."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from cldfast.app.cli import parser
from cldfast.app.commands.sample import _sampler_settings
from cldfast.app.options import given
from cldfast.app.process_options import process
from cldfast.files import parse_json
from cldfast.files.tensors import checked_header
from cldfast.model.run_folder import RunConfig
from cldfast.planner.plan import Plan
from cldfast.process.sde import sde_from_config
from fuzz.mutations import STRANGE, Choices, changed

CORPUS = Path(__file__).parent / "corpus"
Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(name: str) -> Callable[[Target], Target]:
    def enter(function: Target) -> Target:
        def refusing(data: bytes) -> None:
            try:
                function(data)
            except (ValueError, TypeError) as error:
                str(error)

        TARGETS[name] = refusing
        return function

    return enter


def files(name: str) -> list[bytes]:
    """The inputs that the corpus begins with."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


_texts = {name: [text.decode() for text in files(name)] for name in ("config", "plan")}


def _text(name: str, data: bytes) -> bytes:
    """The bytes themselves if they look like JSON; else a text of the corpus, changed by them."""
    if data[:1] == b"{":
        return data
    choices = Choices(data)
    return changed(choices.of(_texts[name]), choices).encode()


@target("config")
def read_config(data: bytes) -> None:
    config = RunConfig.from_dict(parse_json(_text("config", data)))
    sde_from_config(config.sde)


@target("plan")
def read_plan(data: bytes) -> None:
    plan = Plan.from_config(parse_json(_text("plan", data)))
    plan.check_made_for(plan.sde, plan.parameterization)


def _header(text: bytes) -> tuple[str, int]:
    """The header of a safetensors file, and the size of the file."""
    return text[8 : 8 + int.from_bytes(text[:8], "little")].decode(), len(text)


_headers = [_header(text) for text in files("header")]
_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_FILE = Path(_folder.name) / "x.safetensors"


@target("header")
def read_header(data: bytes) -> None:
    if data[3:8] != bytes(5):
        choices = Choices(data)
        header, size = choices.of(_headers)
        text = changed(header, choices).encode()
        data = struct.pack("<Q", len(text)) + text
        data += bytes(max(0, size - len(data)))
    _FILE.write_bytes(data)
    checked_header(_FILE, None, None)


# argparse looks for translations of each of its messages: here for none.
os.environ["LANGUAGE"] = "C"
_parser = parser()
# Words that a command line is made of: those of the corpus, and strange ones.
_lines = [text.decode().split("\n") for text in files("arguments")]
_words = sorted({word for line in _lines for word in line}) + [str(value) for value in STRANGE]


@target("arguments")
def read_arguments(data: bytes) -> None:
    """Lines of a text are arguments; or a line of the corpus has some words replaced."""
    if data[:1] == b"\n":
        arguments = data.decode(errors="replace").split("\n")[1:]
    else:
        choices = Choices(data)
        arguments = list(choices.of(_lines))
        for _ in range(1 + choices.below(4)):
            place = choices.below(len(arguments) + 1)
            arguments[place : place + choices.below(2)] = [choices.of(_words)]
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            args = _parser.parse_args(arguments)
    except SystemExit as error:
        assert error.code in (0, 2), error.code
        return
    if args.command == "sample":
        _sampler_settings({"t_min": 1e-3, "solver": "auto"} | given(args))
    elif args.command == "train":
        process(given(args))
