"""The docstrings of the library are plain text; this makes reStructuredText of them.

A line such as "shape: of the samples" that begins with names and a colon starts an entry, and lines
that are indented go on with it. `name` is code, and a link where it is a public name. A paragraph
that is indented as a whole is shown as it is.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import cldfast

ENTRY = re.compile(r"^([*\w.]+(?:, [*\w.]+)*): (?=\S)")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PUBLIC = {f"cldfast.{name}" for name in cldfast.__all__}
PUBLIC |= {f"cldfast.classical.{name}" for name in cldfast.classical.__all__}


def inline(text: str) -> str:
    """Text as reStructuredText: code becomes code, or a link to the page of a public name."""
    made = []
    for index, part in enumerate(CODE.split(text)):
        if index % 2 == 0:
            made.append(part.replace("*", "\\*").replace("|", "\\|"))
        else:
            made.append(f":py:obj:`{part}`" if part in PUBLIC else f"``{part}``")
    return "".join(made)


def paragraph(lines: list[str]) -> list[str]:
    """One paragraph of a docstring, converted."""
    if all(line.startswith("    ") for line in lines):
        return ["::", "", *lines]
    entries: list[tuple[str, str]] = []  # what stands before the text, and the text
    for line in lines:
        found = ENTRY.match(line)
        # Words of one sentence are no names: "Source: Neal (2003)" stays text.
        if found and found.group(1)[0].islower() | (found.group(1)[0] in "*AD"):
            names = ", ".join(f"**{name.lstrip('*')}**" for name in found.group(1).split(", "))
            entries.append((f"* {names} -- ", line[found.end() :]))
        elif entries and (line.startswith(" ") or (entries[-1][0] and line[0].islower())):
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
        else:
            entries.append(("", line))
    made: list[str] = []
    for index, (before, text) in enumerate(entries):
        if index and bool(before) != bool(entries[index - 1][0]):
            made.append("")
        made.append(before + inline(text))
    return made


def convert(text: str) -> list[str]:
    """A docstring as lines of reStructuredText."""
    made: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        made += [*paragraph(block.splitlines()), ""]
    return made


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The event of autodoc: replaces the lines in place."""
    lines[:] = convert("\n".join(lines))
