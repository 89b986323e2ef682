"""Builds the compiled modules by tools/build_modules.py; all metadata is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))

from build_modules import COMMANDS, modules  # noqa: E402

setup(ext_modules=modules(), cmdclass=COMMANDS)
