"""The example's tests that need no database."""

import subprocess
import sys
from pathlib import Path

SHOP = Path(__file__).resolve().parents[2] / "examples/shop"


def test_shops_pure_tests_pass() -> None:
    command = [sys.executable, "-m", "unittest", "tests.test_requests"]
    run = subprocess.run(command, cwd=SHOP, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0, run.stderr
