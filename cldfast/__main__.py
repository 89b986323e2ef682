"""`python -m cldfast`."""

import sys

from cldfast.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
