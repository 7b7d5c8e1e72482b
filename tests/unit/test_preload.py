"""What the preload callback loads is there before Ansible forks, for the plugins of all the kit's roles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kit import ROOT

PLAY = """
- hosts: localhost
  gather_facts: false
  roles: [certificates]
"""
# Stops where the first process would be forked, and says whether what a filter of the role imports is loaded by then.
PROBE = """
import sys
from ansible.executor.process import worker
def start(self):
    print("LOADED", "cryptography.x509" in sys.modules)
    sys.stdout.flush()
    import os
    os._exit(0)
worker.WorkerProcess.start = start
from ansible.cli.playbook import main
main()
"""


def loaded(tmp_path: Path, **environment: str) -> str:
    play = tmp_path / "play.yml"
    play.write_text(PLAY)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "-i", "localhost,", "-c", "local", str(play)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8", **environment},
    )  # fmt: skip
    return next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))


def test_libraries_of_roles_filters_are_loaded_before_the_first_task_is_forked(tmp_path: Path) -> None:
    assert loaded(tmp_path) == "LOADED True"
    assert loaded(tmp_path, ANSIBLE_CALLBACK_PLUGINS=str(tmp_path)) == "LOADED False"
