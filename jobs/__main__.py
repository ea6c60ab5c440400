"""`python -m jobs`: the command line."""

from __future__ import annotations

from jobs.cli import main

main()
