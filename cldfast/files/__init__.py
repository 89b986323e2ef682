"""Reading and writing files: each is written whole or not at all, and errors name it in one line.

A file is written beside its target and renamed, so a reader finds the old content or the new. A
file that is read is input from a stranger: what it asks for is checked before memory is taken, it
runs no code, and it leads out of no folder. SECURITY.md says what is promised.
"""

from cldfast.files.lock import locked
from cldfast.files.opening import PathLike, located, member, opened, read_bytes
from cldfast.files.plain_json import parse_json, read_json
from cldfast.files.tensors import read_tensors, write_tensors
from cldfast.files.writing import remove_stale, write_atomic, write_json

__all__ = [
    "PathLike", "located", "locked", "member", "opened", "parse_json", "read_bytes", "read_json",
    "read_tensors", "remove_stale", "write_atomic", "write_json", "write_tensors",
]  # fmt: skip
