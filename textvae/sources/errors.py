"""What goes wrong with data."""

from __future__ import annotations


class SourceError(ValueError):
    """Reviews cannot be fetched, read or written; the message names the file, row and column."""
