"""`python -m cldfast.bench RESULTS.csv docs/speed.md`: put the tables of a run between markers."""

import sys
from pathlib import Path

from cldfast.bench.results import read_csv
from cldfast.bench.tables import markdown, with_table
from cldfast.files import write_atomic


def _main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m cldfast.bench RESULTS.csv docs/speed.md", file=sys.stderr)
        return 2
    source, document = map(Path, arguments)
    try:
        text = with_table(document.read_text(encoding="utf-8"), markdown(*read_csv(source)))
        write_atomic(document, text.encode())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
