"""What the role promises, tried from outside: who gets in and who does not, and what is in effect on the host."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
ADDRESS = f"198.18.1.{os.environ.get('STEPLADDER_DEBIAN', '13')}3"
KEYS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "keys"
CONTROLLER = "198.18.1.1"
OURS = "/etc/ssh/sshd_config.d/00-stepladder.conf"
# Calls that stay on the controller.
LOCAL = {"fail", "debug", "assert", "include_role", "include_tasks", "import_tasks", "validate_argument_spec"}


def public(name: str) -> str:
    return (KEYS / f"{name}.pub").read_text().strip()


ADA = {"name": "ada", "keys": [public("ada")], "groups": ["adm"]}
BOB = {"name": "bob", "keys": [public("bob")], "sudo": False}
MALLORY = {"name": "mallory", "state": "absent"}
GIVEN = [ADA, BOB, MALLORY]


def play(*words: str, playbook: str = "converge.yml", **variables: Any) -> dict[str, Any]:
    """Run the role with other values: {rc, changed, calls (remote ones), tasks (those that changed), words, said}."""
    surroundings = {
        **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
    }  # fmt: skip
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(HERE / playbook)]
    done = subprocess.run(
        [*command, "-e", json.dumps(variables), *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=surroundings,
    )  # fmt: skip
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [(t["task"]["name"], r) for p in report["plays"] for t in p["tasks"] for r in t["hosts"].values()]
    ran = [(name, r) for name, r in results if not r.get("skipped")]
    [stats] = report["stats"].values()
    said = [str(r["msg"]) for _, r in ran if r.get("msg")]
    return {
        "rc": done.returncode,
        "changed": stats["changed"],
        "calls": [name for name, r in ran if r.get("action", "").split(".")[-1] not in LOCAL],
        "tasks": [name for name, r in ran if r.get("changed")],
        "said": said,
        "words": " ".join(said),
    }


def ssh(user: str, *command: str, key: str = "", port: int = 22, options: tuple[str, ...] = ()) -> Any:
    """One login over a connection of its own, with a key and nothing else unless the options say so."""
    words = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5"]
    words += [
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "ServerAliveInterval=2",
        "-i",
        str(KEYS / (key or user)),
        "-p",
        str(port),
    ]
    for option in options or ("BatchMode=yes",):
        words += ["-o", option]
    return subprocess.run(
        ["ssh", "-F", "none", *words, f"{user}@{ADDRESS}", *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def with_password(user: str, password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A login with a password, which ssh asks a program for."""
    program = tmp_path / "askpass"
    program.write_text(f"#!/bin/sh\necho '{password}'\n")
    program.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(program))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    return ssh(user, "id", "-un", options=("PreferredAuthentications=password", "NumberOfPasswordPrompts=1"))


def soon(happened: Callable[[], bool]) -> bool:
    """Whether it happens within half a minute."""
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.5)
    return happened()


def forgive(host: Any) -> None:
    """sshd of Debian 13 turns away an address that failed several times; a reload makes it forget."""
    host.run("systemctl reload ssh.service")
    time.sleep(0.3)


def banned(host: Any) -> bool:
    return CONTROLLER in host.check_output("fail2ban-client get sshd banned")


def guessed_until_banned(host: Any, guess: Callable[[], Any]) -> bool:
    """Whether guesses get this address banned.

    sshd counts failures of its own and would turn the guesser away before fail2ban has seen enough;
    while it reloads to forget them it may miss a guess, so that more than fail2ban's five are made.
    """
    for _ in range(15):
        guess()
        forgive(host)
        if banned(host):
            return True
    return soon(lambda: banned(host))


@pytest.fixture(autouse=True)
def forgiven(host: Any) -> None:
    forgive(host)


@pytest.fixture
def restored() -> Iterator[None]:
    """Bring the scenario's own settings back, whatever the test did."""
    yield
    assert play()["rc"] == 0


def processes(host: Any, user: str) -> list[str]:
    return host.run("find /proc -maxdepth 1 -regex '/proc/[0-9]+' -user %s", user).stdout.split()


def test_administrators_log_in_with_their_keys_and_have_the_rights_they_were_given() -> None:
    assert ssh("ada", "sudo -n id -un; id -Gn").stdout.split() == ["root", "ada", "adm"]
    assert ssh("bob", "id -un").stdout.strip() == "bob"
    assert ssh("bob", "sudo -n id -un").returncode != 0
    assert ssh("bob", "id -un", key="ada").returncode != 0


def test_absent_administrator_is_kept_out_and_keeps_the_files(host: Any) -> None:
    assert ssh("mallory", "id").returncode != 0
    assert host.check_output("cat /home/mallory/notes") == "theirs"
    assert host.check_output("stat -c %U /home/mallory/notes") == "mallory"
    assert host.check_output("id -Gn mallory") == "mallory"
    # Either would keep it out: an account that has expired, and one without keys and with no password that fits.
    password, *days = host.check_output("getent shadow mallory").split(":")[1:]
    assert (password[0], days[-2]) == ("!", "1")
    assert not host.file("/home/mallory/.ssh/authorized_keys").exists
    assert not host.file("/etc/stepladder/authorized_keys/mallory").exists


def test_account_that_is_not_listed_is_untouched(host: Any) -> None:
    assert ssh("carol", "id -Gn").stdout.split() == ["carol", "sudo"]
    assert host.check_output("cat /home/carol/.ssh/authorized_keys") == public("carol")
    password, *days = host.check_output("getent shadow carol").split(":")[1:]
    assert password.startswith("$")
    assert days[-2:] == ["", ""]
    assert ssh("admin", "sudo -n id -un").stdout.strip() == "root"


def test_removed_account_is_gone_and_its_files_are_not(host: Any, restored: None) -> None:
    host.check_output("useradd --create-home dave && echo mine > /home/dave/notes")
    gone = {"name": "dave", "state": "absent", "remove": True}
    assert play(base_administrators=[*GIVEN, gone])["rc"] == 0
    assert not host.user("dave").exists
    assert host.check_output("cat /home/dave/notes") == "mine"
    assert play(base_administrators=[*GIVEN, gone])["changed"] == 0
    host.check_output("rm -r /home/dave")


def test_passwords_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = with_password("carol", "old-password", tmp_path, monkeypatch)
    assert (refused.returncode, refused.stdout) == (255, "")
    assert "(publickey)" in refused.stderr


def test_root_comes_in_with_a_key() -> None:
    assert ssh("root", "id -un", key="carol").stdout.strip() == "root"


class TestWithOtherSettings:
    """One run with many things set otherwise."""

    SETTINGS = {
        "base_administrators": [
            {**ADA, "sudo": "password"},
            {**BOB, "keys": [public("carol")]},
            {"name": "mallory", "keys": [public("mallory")]},
        ],
        "base_ssh_passwords": True,
        "base_ssh_root_with_key": False,
        "base_ssh_settings": {"LoginGraceTime": 77, "X11Forwarding": "yes"},
        "base_upgrades": False,
    }

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _otherwise(cls) -> Iterator[None]:
        assert play(**cls.SETTINGS)["rc"] == 0
        yield
        assert play()["rc"] == 0

    def test_password_asks_for_sudo_where_it_should(self, host: Any) -> None:
        assert ssh("ada", "sudo -n id -un").returncode != 0
        host.check_output("echo ada:new | chpasswd")
        assert ssh("ada", "echo new | sudo -S id -un").stdout.strip() == "root"

    def test_key_taken_out_of_the_list_no_longer_logs_in(self) -> None:
        assert ssh("bob", "id").returncode != 0
        assert ssh("bob", "id", key="carol").returncode == 0

    def test_passwords_are_taken_where_they_are_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert with_password("carol", "old-password", tmp_path, monkeypatch).stdout.strip() == "carol"

    def test_root_stays_out_with_its_key_too(self) -> None:
        assert ssh("root", "id -un", key="carol").returncode != 0

    def test_setting_of_ones_own_wins(self, host: Any) -> None:
        effective = host.check_output("sshd -T").splitlines()
        assert {"logingracetime 77", "x11forwarding yes", "permitemptypasswords no"} <= set(effective)

    def test_upgrades_can_be_left_to_people(self, host: Any) -> None:
        assert 'APT::Periodic::Unattended-Upgrade "0";' in host.check_output("apt-config dump")

    def test_who_was_absent_can_come_back_and_leaving_ends_what_runs(self, host: Any) -> None:
        assert ssh("mallory", "sudo -n id -un").stdout.strip() == "root"
        ssh("mallory", "nohup sleep 1000 > /dev/null 2>&1 &")
        assert processes(host, "mallory")
        assert play(**{**self.SETTINGS, "base_administrators": GIVEN})["rc"] == 0
        assert processes(host, "mallory") == []
        assert ssh("mallory", "id").returncode != 0
        assert not host.file("/etc/sudoers.d/stepladder-mallory").exists


def test_run_does_not_lock_out_the_account_it_uses(host: Any) -> None:
    done = play(base_administrators=[*GIVEN, {"name": "admin", "state": "absent"}])
    assert done["rc"] != 0
    assert "it would lock itself out" in done["words"]
    assert done["changed"] == 0
    assert ssh("admin", "id").returncode == 0


def test_setting_that_sshd_refuses_changes_nothing(host: Any) -> None:
    before = host.file(OURS).content_string
    done = play(base_ssh_settings={"LoginGraceTime": "soon", "NoSuchKeyword": 1})
    assert done["rc"] != 0
    assert f"{OURS} was refused" in done["words"]
    assert "The old files stay." in done["words"]
    assert host.file(OURS).content_string == before


@pytest.mark.parametrize("settings", [{"AllowUsers": "somebody-else"}, {"PubkeyAuthentication": "no"}])
def test_configuration_that_locks_out_is_put_back(host: Any, settings: dict[str, str]) -> None:
    before = host.file(OURS).content_string
    done = play(base_ssh_settings=settings)
    assert done["rc"] != 0
    assert "no new SSH connection to" in done["words"]
    assert "The old one was put back." in done["words"]
    assert host.file(OURS).content_string == before
    for user in ("admin", "ada"):
        assert ssh(user, "id -un").stdout.strip() == user
    assert host.run("systemctl is-active stepladder-guard-base.timer").stdout.strip() == "inactive"


def test_file_that_overrides_ours_is_noticed(host: Any) -> None:
    other = "/etc/ssh/sshd_config.d/00-a.conf"
    host.check_output(f"echo 'PasswordAuthentication yes' > {other}")
    try:
        assert play("--check")["changed"] == 1
        done = play()
        assert done["rc"] != 0
        assert "does not take effect" in done["words"]
    finally:
        host.check_output(f"rm {other}")


def test_port_moves_without_a_gap(host: Any, restored: None) -> None:
    """The old one is open until a run has come in by the new one."""
    done = play(base_ssh_port=2222)
    assert done["rc"] == 0
    assert "Set ansible_port to 2222 in your inventory" in done["words"]
    assert [ssh("ada", "id -un", port=port).stdout.strip() for port in (22, 2222)] == ["ada", "ada"]
    assert play(base_ssh_port=2222)["changed"] == 0
    assert play(base_ssh_port=2222, ansible_port=2222)["rc"] == 0
    assert "refused" in ssh("ada", "id -un", port=22).stderr
    assert ssh("ada", "id -un", port=2222).stdout.strip() == "ada"
    assert "port 2222" in host.file("/etc/fail2ban/jail.d/stepladder.local").content_string.replace("=", "").replace(
        "  ", " "
    )
    assert play(ansible_port=2222)["rc"] == 0


def test_port_moves_where_systemd_listens(host: Any, restored: None) -> None:
    # Few starts in a long time, so that the limit of many in a short time is met however long a run takes.
    limits = "/run/systemd/system/ssh.socket.d"
    few = r"[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2\n"
    host.check_output(f"mkdir -p {limits} && printf '{few}' > {limits}/few.conf && systemctl daemon-reload")
    host.check_output("systemctl stop ssh.service && systemctl start ssh.socket")
    try:
        assert ssh("ada", "id -un").stdout.strip() == "ada"
        assert play(base_ssh_port=2222)["rc"] == 0
        assert [ssh("ada", "id -un", port=port).stdout.strip() for port in (22, 2222)] == ["ada", "ada"]
        done = play(base_ssh_port=2222, base_ssh_settings={"AllowUsers": "somebody-else"})
        assert "The old one was put back." in done["words"]
        assert ssh("ada", "id -un", port=2222).stdout.strip() == "ada"
    finally:
        host.check_output(f"rm -r {limits} && systemctl daemon-reload")
        host.check_output("systemctl stop ssh.socket ssh.service && systemctl start ssh.service")


def test_time_zone_and_locale_are_what_people_see(host: Any) -> None:
    assert host.check_output("timedatectl show -p Timezone --value") == "Europe/Berlin"
    seen = ssh("ada", "date -d 2026-07-01T12:00Z +%Z; date -d 2026-07-01 +%A; echo $LANG").stdout.split()
    assert seen == ["CEST", "Mittwoch", "de_DE.UTF-8"]
    assert "de_DE.UTF-8 UTF-8" in host.file("/etc/locale.gen").content_string.splitlines()


def test_journal_is_kept_and_bounded(host: Any) -> None:
    effective = host.check_output("systemd-analyze cat-config systemd/journald.conf").splitlines()
    assert {"SystemMaxUse=64M", "MaxRetentionSec=14day", "Storage=persistent"} <= set(effective)
    host.check_output("systemctl restart systemd-journald && journalctl --sync")
    assert "max 64" in host.check_output("journalctl -q -u systemd-journald -n 20 --grep '^System Journal'")
    assert host.check_output("journalctl -q -n 1 --directory /var/log/journal -o cat")


def test_daily_upgrades_take_security_and_nothing_else(host: Any) -> None:
    words = host.check_output("unattended-upgrade --dry-run --debug 2>&1")
    [allowed] = re.findall(r"Allowed origins are: (.*)", words)
    assert len(re.findall(r"label=Debian-Security", allowed)) == len(re.findall("origin=", allowed)) > 0
    codename = host.check_output(". /etc/os-release; echo $VERSION_CODENAME")
    assert f"codename={codename}-security" in allowed
    assert re.search(r"Initial blacklist: postgresql-\s*$", words, re.M)
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.service(timer).is_running
        assert host.service(timer).is_enabled
    assert 'APT::Periodic::Unattended-Upgrade "1";' in host.check_output("apt-config dump")


def test_clock_is_left_alone_in_a_container_and_its_configuration_is_right(host: Any) -> None:
    assert host.package("chrony").is_installed
    assert not host.service("chrony").is_running
    assert not host.service("chrony").is_enabled
    printed = host.check_output("chronyd -p -f /etc/chrony/chrony.conf").splitlines()
    assert [line for line in printed if line.startswith(("server", "pool"))] == ["server 192.0.2.123 iburst"]


def test_kernel_settings_are_written_and_said_once_to_be_out_of_reach(host: Any) -> None:
    path = "/etc/sysctl.d/90-stepladder.conf"
    assert "kernel.kptr_restrict = 1" in host.file(path).content_string
    host.check_output(f"rm {path}")
    first, second = play(), play()
    assert (first["rc"], second["changed"]) == (0, 0)
    assert f"{path} is written" in first["words"]
    assert path not in second["words"]


NOBODY_IGNORED = {"base_fail2ban_ignore": ["192.0.2.0/24"]}


def test_guesser_is_banned_and_only_where_that_is_wanted(host: Any, restored: None) -> None:
    assert play(**NOBODY_IGNORED)["rc"] == 0
    assert guessed_until_banned(host, lambda: ssh("nosuchuser", "id", key="ada"))
    assert soon(lambda: ssh("ada", "id").returncode != 0)
    host.check_output("fail2ban-client unban --all")
    assert soon(lambda: ssh("ada", "id").returncode == 0)
    # An old program, which gets no further than to agree on how to talk, is counted as well.
    old = ("BatchMode=yes", "KexAlgorithms=diffie-hellman-group14-sha1")
    assert guessed_until_banned(host, lambda: ssh("ada", "id", options=old))
    host.check_output("fail2ban-client unban --all")
    assert play(base_fail2ban=False)["rc"] == 0
    assert not host.service("fail2ban").is_running


def test_proof_does_not_get_its_own_address_banned(host: Any, restored: None) -> None:
    before = host.file(OURS).content_string
    assert play(**NOBODY_IGNORED)["rc"] == 0
    host.check_output("fail2ban-client set sshd maxretry 1")
    done = play(base_ssh_settings={"AllowUsers": "somebody-else"}, **NOBODY_IGNORED)
    assert "The old one was put back." in done["words"]
    assert host.file(OURS).content_string == before
    # It has seen what it would have banned for.
    assert soon(lambda: f"Ignore {CONTROLLER}" in host.file("/var/log/fail2ban.log").content_string)
    assert CONTROLLER not in host.check_output("fail2ban-client get sshd banned")
    forgive(host)
    assert ssh("ada", "id -un").stdout.strip() == "ada"


def test_check_mode_tells_what_a_run_would_do_and_does_nothing(host: Any) -> None:
    before = host.check_output("cat /etc/shadow /etc/localtime | sha256sum")
    done = play(
        "--check", base_administrators=[*GIVEN, {"name": "eve", "keys": [public("ada")]}], base_timezone="Asia/Tokyo"
    )
    assert done["tasks"] == [
        "base : Bring the administrators' accounts into their states",
        "base : Write keys, sudo rules and the system's settings",
    ]
    assert host.check_output("cat /etc/shadow /etc/localtime | sha256sum") == before


def test_second_run_changes_nothing_in_five_calls(host: Any) -> None:
    """What systemd started, and when, stays as it was."""
    started = "systemctl show -p ActiveEnterTimestampMonotonic,MainPID ssh fail2ban systemd-journald"
    before = host.check_output(started)
    done = play()
    assert (done["rc"], done["changed"], len(done["calls"])) == (0, 0, 5), done["calls"]
    assert host.check_output(started) == before


REFUSALS = {
    "no key": ({"base_administrators": [{"name": "ada"}]}, "none of them could log in"),
    "all without": ({"base_administrators": [{"name": "a"}, {"name": "b", "keys": []}]}, "those who stay (a, b)"),
    "typo": ({"base_administrators": [{"name": "ada", "key": "x"}]}, "the unknown key key; it knows groups, keys"),
    "name": ({"base_administrators": [{"name": "Ada L", "keys": [public("ada")]}]}, "no name that Linux takes"),
    "nameless": ({"base_administrators": [{"keys": [public("ada")]}]}, "entry 1 (without a name), has no name"),
    "twice": ({"base_administrators": [ADA, ADA]}, "lists ada twice"),
    "state": ({"base_administrators": [{"name": "ada", "state": "gone"}]}, "the state gone; it is present or absent"),
    "remove": ({"base_administrators": [{**ADA, "remove": True}]}, "remove: true, which needs state: absent"),
    "sudo": ({"base_administrators": [{**ADA, "sudo": "ask"}]}, "sudo: ask; it is true"),
    "both": ({"base_administrators": [{**ADA, "sudo": False, "groups": ["sudo"]}]}, "keep one of the two"),
    "text": ({"base_administrators": [{"name": "ada", "keys": public("ada")}]}, "keys that is not a list"),
    "cut": ({"base_administrators": [{"name": "ada", "keys": [public("ada")[:40]]}]}, "cut short or damaged"),
    "word": ({"base_administrators": [{"name": "ada", "keys": ["~/.ssh/id.pub"]}]}, "is not an OpenSSH public key"),
    "lines": (
        {"base_administrators": [{"name": "ada", "keys": [public("ada") + "\n" + public("bob")]}]},
        "more than one line",
    ),
    "private": (
        {"base_administrators": [{"name": "ada", "keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}]},
        "a private key",
    ),
    "port": ({"base_ssh_port": 70000}, "base_ssh_port is 70000; a port is a number"),
    "haste": ({"base_ssh_confirm_seconds": 1}, "too short to prove a way back in"),
    "owned": ({"base_ssh_settings": {"passwordAuthentication": "yes"}}, "set base_ssh_passwords instead"),
    "bool": ({"base_ssh_settings": {"X11Forwarding": True}}, 'write "yes" or "no" in quotes'),
    "block": ({"base_ssh_settings": {"Match": "User ada"}}, "not a keyword with a value of one line"),
    "two lines": (
        {"base_ssh_settings": {"Banner": "a\nPermitRootLogin yes"}},
        "not a keyword with a value of one line",
    ),
    "zone": ({"base_timezone": "../../etc/shadow"}, "write a name such as Etc/UTC"),
    "locale": ({"base_locale": "de_DE"}, "write a locale with its character set"),
    "size": ({"base_journal_max": "lots"}, "write a size in systemd's words"),
    "time": ({"base_upgrades_reboot_time": "25:00"}, "write a time of day"),
    "hold": ({"base_upgrades_hold": ["postgresql-", 'a"; b']}, "write a regular expression without quotes"),
    "server": ({"base_time_servers": ["time one"]}, "write a host's name or address"),
    "network": ({"base_fail2ban_ignore": ["10.0.0.0/40"]}, "write an address or network"),
    "kernel": ({"base_sysctl": {"vm.swappiness": ""}}, "write a kernel setting and a value"),
}


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    done = play(playbook="refusals.yml", cases=[case for case, _ in REFUSALS.values()])
    said = dict(re.findall(r"(?s)^case (\d+): (.*)", words)[0] for words in done["said"] if words.startswith("case "))
    return {name: said.get(str(number), "nothing") for number, name in enumerate(REFUSALS)}


@pytest.mark.parametrize("name", REFUSALS)
def test_input_that_makes_no_sense_is_refused_with_a_sentence(refusals: dict[str, str], name: str) -> None:
    assert REFUSALS[name][1] in refusals[name]
    assert refusals[name].endswith("base changed nothing.")
    assert "\n" not in refusals[name]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"base_timezone": "Europe/Atlantis"}, "does not know the time zone Europe/Atlantis"),
        ({"base_administrators": [{**ADA, "groups": ["nosuchgroup"]}]}, "the group nosuchgroup, which does not exist"),
        ({"base_administrators": [*GIVEN, {"name": "daemon", "state": "absent"}]}, "one of the system's own accounts"),
        ({"base_locale": "xx_YY.UTF-8"}, "does not know the locale xx_YY.UTF-8"),
    ],
)
def test_what_the_host_does_not_know_is_refused(variables: dict[str, Any], words: str) -> None:
    done = play(**variables)
    assert done["rc"] != 0
    assert words in done["words"]
    assert done["changed"] == 0
