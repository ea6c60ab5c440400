"""Where reviews come from: imdb, snippets, files -> Arrow IPC files of text, label and rating."""

from textvae.sources.corpus import Corpus, Counts, Description, Example, prepare
from textvae.sources.errors import SourceError
from textvae.sources.imdb import Archive
from textvae.sources.reviews import Reviews, Slice

__all__ = [
    "Archive",
    "Corpus",
    "Counts",
    "Description",
    "Example",
    "Reviews",
    "Slice",
    "SourceError",
    "prepare",
]
