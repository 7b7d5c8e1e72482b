"""What a lab keeps to itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kit import ROOT
from lab.machine import MachineError
from lab.model import Lab

HOLDS = """
import sys, time
from pathlib import Path
from lab.model import Lab
with Lab("one", Path(sys.argv[1])).alone("up"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_commands_that_change_a_lab_do_not_run_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            words = f"at work on the lab one .up, process {other.pid}."
            with pytest.raises(MachineError, match=words), Lab("one", tmp_path).alone("down"):
                pass
            with Lab("two", tmp_path).alone("up"):
                pass
        finally:
            other.kill()
    with Lab("one", tmp_path).alone("down"):
        pass
