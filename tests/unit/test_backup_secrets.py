"""The secrets go into one encrypted file, and come back by the command that the documentation has."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kit import ROOT, run_playbook

PAGE = ROOT / "docs/operations/backup.md"
BINARY = bytes(range(256)) * 9 + b"\r\n\0$ANSIBLE_VAULT;1.1;AES256\n"


@pytest.fixture
def inventory(make_inventory: Callable[..., Path], tmp_path: Path) -> Path:
    folder = make_inventory({"web": ["one"], "database": ["one"]})
    (folder / "secrets/ca").mkdir(parents=True)
    (folder / "secrets/database_password").write_text("s3cret\n")
    (folder / "secrets/ca/ca.key").write_bytes(BINARY)
    (folder / "secrets/ca/ca.key").chmod(0o600)
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    return folder


def test_what_was_packed_comes_back_by_the_documented_command(inventory: Path, tmp_path: Path) -> None:
    done = run_playbook("playbooks/backup-secrets.yml", inventory, "-e", f"passphrase_file={tmp_path}/passphrase")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "correct horse" not in done.stdout + done.stderr
    pack = inventory / "secrets.vault"
    assert pack.read_text().startswith("$ANSIBLE_VAULT")
    assert pack.stat().st_mode & 0o777 == 0o600
    assert not list(inventory.glob("*.new"))

    [command] = re.findall(r"(?m)^(\.venv/bin/ansible-vault decrypt .*)$", PAGE.read_text())
    new = tmp_path / "new"
    new.mkdir()
    given = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace(
        "inventories/<env>/secrets.vault", str(pack)
    )
    given = given.replace("inventories/<env>", str(new)).replace(
        "decrypt", f"decrypt --vault-password-file {tmp_path}/passphrase"
    )
    subprocess.run(["bash", "-euo", "pipefail", "-c", given], check=True, cwd=tmp_path, capture_output=True)
    assert (new / "secrets/ca/ca.key").read_bytes() == BINARY
    assert (new / "secrets/ca/ca.key").stat().st_mode & 0o777 == 0o600
    assert (new / "secrets/database_password").read_text() == "s3cret\n"


@pytest.mark.parametrize(
    ("place", "text", "sentence"),
    [
        ("secrets/passphrase", "correct horse battery", "lies among the secrets"),
        ("passphrase", "short", "fewer than 12 characters"),
    ],
)
def test_a_passphrase_that_protects_nothing_is_refused(inventory: Path, place: str, text: str, sentence: str) -> None:
    (inventory / place).write_text(text)
    done = run_playbook("playbooks/backup-secrets.yml", inventory, "-e", f"passphrase_file={inventory / place}")
    assert done.returncode != 0
    assert sentence in re.sub(r"\s+", " ", done.stdout) and "Nothing was packed" in done.stdout
    assert not (inventory / "secrets.vault").exists()
    assert text not in done.stdout + done.stderr
