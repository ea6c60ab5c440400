"""Marks of tests that not every run has."""

from __future__ import annotations

import os

import pytest

takes_minutes = pytest.mark.skipif(
    os.environ.get("TEXTVAE_CHAOS") != "all", reason="takes minutes: make chaos"
)
