"""`python -m narrows.cli` is the `narrows` command."""

from __future__ import annotations

import sys

from narrows.cli import main

sys.exit(main())
