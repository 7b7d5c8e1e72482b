"""What the lab reads from the machine it runs on, and what it leaves alone there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lab import artifacts, image, machine, scenarios
from lab.model import ROOT

ROUTES = "Iface Destination Gateway Flags RefCnt Use Metric Mask\nbr0 000112C6 0 1 0 0 0 00FFFFFF\neth7 00000000 0 3 0 0 0 00000000\n"


def certificate(text: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"


def test_the_default_routes_interface_is_found() -> None:
    assert machine.default_interface(ROUTES) == "eth7"
    assert machine.default_interface("Iface Destination\n") is None


def test_only_certificates_that_debian_does_not_ship_go_into_the_image() -> None:
    bundle = certificate("debian's") + certificate("the company's")
    assert machine.extra_certificates(bundle, [certificate("debian's")]) == [certificate("the company's")]


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for pid, name in {"10": "dockerd", "11": "bash"}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{name}\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("pid", "stays"), [("10", True), ("11", False), ("12", False), ("", False)])
def test_pid_file_of_a_killed_engine_is_removed_and_a_running_ones_is_not(
    processes: Path, pid: str, stays: bool
) -> None:
    path = processes / "docker.pid"
    path.write_text(pid)
    machine.remove_stale_pid_file(path)
    assert path.exists() is stays


def test_without_root_the_command_to_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_root", lambda: False)
    with pytest.raises(machine.MachineError, match="sudo apt-get install -y --no-install-recommends mmdebstrap"):
        machine.install_packages(["mmdebstrap"], "mmdebstrap")


def test_another_input_makes_another_image() -> None:
    recipe = image.host_recipe("13")
    assert recipe.digest() == image.host_recipe("13").digest()
    assert recipe.digest() != image.host_recipe("12").digest()
    changed = image.Recipe(recipe.tag, recipe.base, recipe.dockerfile, {**recipe.files, "files/etc/x": (b"", 0o644)})
    assert recipe.digest() != changed.digest()


def test_image_has_no_login_without_a_key() -> None:
    files = image.host_recipe("13").files
    assert b"PasswordAuthentication no" in files["files/etc/ssh/sshd_config.d/10-keys-only.conf"][0]
    assert not any("authorized_keys" in name or name.endswith("_key") for name in files)


def test_sources_name_the_release_and_its_security_updates() -> None:
    text = image.sources("12", "http://mirror.example/debian")
    assert "Suites: bookworm bookworm-updates" in text
    assert "URIs: http://mirror.example/debian-security" in text


def test_an_artifact_that_was_changed_or_is_of_another_version_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("program")
    (tmp_path / "VERSION").write_text("1\n")
    assert not artifacts.is_complete(tmp_path, "1", ("tool",))
    (tmp_path / "SHA256SUMS").write_text(artifacts.sums(tmp_path))
    assert artifacts.is_complete(tmp_path, "1", ("tool",))
    assert not artifacts.is_complete(tmp_path, "2", ("tool",))
    (tmp_path / "tool").write_text("another")
    assert not artifacts.is_complete(tmp_path, "1", ("tool",))


def test_another_version_or_main_is_another_artifact() -> None:
    one = artifacts.GoArtifact("One", "example.com/one", "v1", main="package main")
    others = (dataclasses.replace(one, version="v2"), dataclasses.replace(one, main="package main // another"))
    assert len({artifact.edition for artifact in (one, *others)}) == 3


def test_go_builds_the_programs_that_an_artifact_names_at_its_version() -> None:
    for name, artifact in artifacts.GO_ARTIFACTS.items():
        command = artifact.command(name)
        assert artifact.programs(name) and all(program in command for program in artifact.programs(name))
        assert f"@{artifact.version}" in command


def test_what_scenarios_copy_is_what_is_built_for_them() -> None:
    needed = {scenario: scenarios.artifacts(ROOT, scenario) for scenario in scenarios.scenarios(ROOT)}
    assert needed["nginx"] == needed["haproxy"] == {"pebble"}
    assert needed["pgbackrest_s3"] == {"rclone"}
    assert set().union(*needed.values()) == set(artifacts.GO_ARTIFACTS)
