"""What the suite relies on of its own tools."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_TESTS = """
import pytest

@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("number", range(4))
def test_it(number):
    pass
"""


def test_a_group_of_tests_stays_in_one_process(tmp_path: Path):
    """Else two workers start Ray at once, on two cores."""
    for name in ("test_first.py", "test_second.py"):
        (tmp_path / name).write_text(_TESTS)
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "-v",
    ]
    ran = subprocess.run([*pytest, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    workers = re.findall(r"^\[(gw\d)\].* PASSED ", ran.stdout, re.MULTILINE)
    assert len(workers) == 8, ran.stdout + ran.stderr
    assert len(set(workers)) == 1, ran.stdout
