"""`python -m polarstream` is the command line."""

from __future__ import annotations

import sys

from polarstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
