"""What the role promises, tried from the controller and from a client: what is open, and that nobody is locked out."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import testinfra

SCENARIO = Path(__file__).resolve().parents[1]
DEBIAN = os.environ.get("STEPLADDER_DEBIAN", "13")
PREFIX = os.environ.get("STEPLADDER_SCENARIO", "firewall")
ADDRESS, CLIENT, CONTROLLER = f"198.18.1.{DEBIAN}1", f"198.18.1.{DEBIAN}2", "198.18.1.1"
TCP, UDP = (22, 2222, *range(8001, 8005), *range(8009, 8014)), (8001, 8004, 8005)
LISTENING = [*(f"tcp:{port}" for port in TCP), *(f"udp:{port}" for port in UDP)]
FILES = "/etc/stepladder/firewall.nft", "/etc/systemd/system/stepladder-firewall.service"
UNIT = "stepladder-firewall.service"
GUARD = "/var/lib/stepladder/guard/firewall"
MARK = 'comment "a new rule"'
NEW_RULE = [{"port": 8009, "comment": "a new rule"}]
KEY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "id_ed25519"
# An element that was added at run time would not survive a reload from a file.
OTHERS = """
table inet others {
  set banned { type ipv4_addr; flags interval; }
  chain input { type filter hook input priority 10; policy accept; ip saddr @banned drop; }
}
table ip others_nat {
  chain prerouting { type nat hook prerouting priority dstnat; tcp dport 9999 redirect to :8001; }
}
add element inet others banned { 198.51.100.7 }
"""
# All that is wrong is said in one run; what the arguments' types refuse is said by Ansible.
WRONG = [
    (
        {
            "firewall_ssh_port": 0,
            "firewall_ssh_from": ["localhost"],
            "firewall_trusted_interfaces": ["eth0; drop"],
            "firewall_confirm_seconds": 0,
            "firewall_allow": [
                {"port": 70000},
                {"port": 80, "sources": ["192.0.2.1"]},
                {"port": 80, "from": ["web1.example.com"], "comment": "The web host's"},
                {"port": 80, "from": ["192.0.2.7/24"]},
                {"port": 80, "from": "192.0.2.7"},
                {"port": "8010-8000"},
                {"port": 80, "proto": "icmp"},
                {"from": ["192.0.2.7"]},
                {"port": 80, "comment": 'a "quoted" word'},
                {"port": []},
                {"proto": "vrrp"},
            ],
        },
        [
            "firewall_allow, entry 1, has the port 70000; a port is a number from 1 to 65535",
            "firewall_allow, entry 2, has the unknown key sources; it knows port, proto, from and comment.",
            "firewall_allow, entry 3 (The web host's), has the source web1.example.com, which is not an address or network",
            "firewall_allow, entry 4, has the source 192.0.2.7/24, which has bits after its network part; write 192.0.2.0/24.",
            "firewall_allow, entry 5, has from: 192.0.2.7; it is a list, [192.0.2.7].",
            "firewall_allow, entry 6, has the port range 8010-8000, whose end is not after its start.",
            "firewall_allow, entry 7, has the proto icmp; it is tcp, udp or vrrp.",
            "firewall_allow, entry 8, has no port; name the one to open.",
            "has a comment with a quote",
            "firewall_allow, entry 10, has an empty list of ports; leave the entry out, or name a port.",
            "firewall_allow, entry 11, has the proto vrrp, which has no port and needs from",
            "firewall_ssh_port has the port 0;",
            "firewall_ssh_from has the source localhost, which is not an address or network",
            "firewall_trusted_interfaces has 'eth0; drop', which is not an interface's name.",
            "firewall_confirm_seconds is 0;",
        ],
    ),
    ({"firewall_allow": ["8000"]}, []),
    ({"firewall_ssh_port": "ssh"}, []),
]


# Over Docker and not over SSH: a test must see the host that it has cut off. Not parametrized, so each test runs once.
@pytest.fixture(scope="module")
def host():
    return testinfra.get_host(f"docker://{PREFIX}-debian{DEBIAN}")


@pytest.fixture(scope="module")
def client():
    return testinfra.get_host(f"docker://{PREFIX}-client-debian{DEBIAN}")


def command(*words, **variables):
    return [
        "ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(SCENARIO / "converge.yml"),
        "-e", json.dumps(variables), *words,
    ]  # fmt: skip


def play(*words, **variables):
    """Run the scenario's play with other values; gives (exit code, changed, everything it said on one line)."""
    done = subprocess.run(command(*words, **variables), capture_output=True, text=True, timeout=240, cwd=SCENARIO)
    said = " ".join((done.stdout + done.stderr).split())
    return done.returncode, int(re.search(r"changed=(\d+)", said)[1]), said


def served(*words, **variables):
    code, changed, said = play(*words, **variables)
    assert code == 0, said[-4000:]
    return changed


def table(host):
    return host.run("nft -s list table inet stepladder").stdout


def timers(host):
    return host.run("systemctl list-timers --all 'stepladder-guard-*' --no-legend").stdout.strip()


def everything(host):
    """All that the role could change: which tables there are, its own one, its files, its unit, its guard."""
    return host.check_output(
        f"nft list tables; nft -s list table inet stepladder 2>&1; sha256sum {' '.join(FILES)} 2>&1; systemctl is-enabled {UNIT} 2>&1;"
        f" systemctl is-active {UNIT}; find {GUARD}* -maxdepth 0 2>/dev/null;"
        " find /etc/systemd/system -name 'stepladder-guard-*'"
    ) + timers(host)


def open_from(client, address=ADDRESS, source="any", knocks=LISTENING):
    """What of `knocks` answers: asked on the client, or on the controller when that is None."""
    words = [address, source, *knocks]
    if client is None:
        script = SCENARIO / "files/knock.py"
        return subprocess.run(
            [sys.executable, script, *words], capture_output=True, text=True, check=True
        ).stdout.split()
    return client.check_output("python3 /opt/scenario/knock.py " + " ".join(words)).split()


def ssh_words(key, *words):
    alone = "ControlPath=none ConnectTimeout=3 BatchMode=yes StrictHostKeyChecking=no UserKnownHostsFile=/dev/null"
    options = [word for option in alone.split() for word in ("-o", option)]
    return ["ssh", "-q", *options, "-i", str(key), f"admin@{ADDRESS}", *words]


def new_login():
    """One SSH connection that shares nothing with others; True when it gets through."""
    return subprocess.run(ssh_words(KEY, "true"), capture_output=True).returncode == 0


def until(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            return found
        time.sleep(0.3)
    return found


def reboot(host):
    for words in (["kill", "--signal", "SIGRTMIN+3"], ["wait"], ["start"]):
        subprocess.run(["docker", *words, host.backend.name], check=True, capture_output=True, timeout=60)
    assert until(lambda: host.run("systemctl is-system-running --wait").stdout.strip() in ("running", "degraded"))
    assert until(new_login)
    assert host.check_output("systemctl is-active scenario-listen.service ssh.service").split() == ["active", "active"]


def family(pid):
    """A process and all its descendants, sessions of their own or not: Ansible's workers start one each."""
    found = [pid]
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [member for child in listed.read_text().split() for member in family(int(child))]
    return found


BEGAN = {}


@pytest.fixture(autouse=True)
def as_it_began(host):
    """The rules that the scenario made are in effect when a test begins, whatever the one before did."""
    if BEGAN and everything(host) != BEGAN["state"]:
        served()
    assert everything(host) == BEGAN.setdefault("state", everything(host))


def test_what_is_open_is_reachable_from_where_it_should_be_and_nowhere_else(host, client):
    theirs = ["tcp:22", "tcp:8001", "tcp:8002", "tcp:8010", "tcp:8011", "tcp:8012", "udp:8004"]
    everyones = ["tcp:22", "tcp:8001", "udp:8004"]
    assert open_from(host, "127.0.0.1") == LISTENING, "on loopback all of it answers, so what does not was dropped"
    assert open_from(client) == theirs
    assert open_from(None) == everyones


def test_ipv6_is_filtered_by_its_own_sources(client):
    assert open_from(client, "2001:db8::1", "2001:db8::2", ["tcp:8001", "tcp:8002", "tcp:8003"]) == [
        "tcp:8001",
        "tcp:8002",
    ]
    assert open_from(client, "fd00::1", "fd00::2", ["tcp:8001", "tcp:8002", "tcp:8003"]) == ["tcp:8001"]


def test_the_host_still_reaches_others_and_answers_pings(host, client):
    assert open_from(host, CLIENT, knocks=["tcp:8013", "udp:8005", "ping"]) == ["tcp:8013", "udp:8005", "ping"]
    assert open_from(client, knocks=["ping"]) == ["ping"]
    assert open_from(client, "2001:db8::1", knocks=["ping"]) == ["ping"]


def test_a_run_that_changes_nothing_loads_nothing(host):
    handle = host.check_output("nft -a list table inet stepladder")
    assert served() == 0
    assert served("--check", "--diff") == 0
    assert host.check_output("nft -a list table inet stepladder") == handle


def test_a_change_takes_effect_and_cuts_no_session(host, client):
    session = subprocess.Popen(ssh_words(KEY, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    session.stdin.write("before\n")
    session.stdin.flush()
    assert session.stdout.readline() == "before\n"
    assert served(firewall_allow=NEW_RULE, firewall_ssh_from=[CONTROLLER]) == 1
    assert session.communicate("after\n", timeout=10)[0] == "after\n"
    assert open_from(client) == ["tcp:8009"]
    assert open_from(None) == ["tcp:22", "tcp:8009"]
    assert host.run(f"ls -d {GUARD}").rc != 0 and timers(host) == ""


def test_every_option_at_once(host, client):
    options = {
        "firewall_log_dropped": True, "firewall_trusted_interfaces": ["eth0"], "firewall_ssh_from": ["0.0.0.0/0", "::/0"],
        "firewall_allow": [{"port": [80, 80, "8000-8010", "8005-8020"], "from": [CLIENT, CLIENT, "198.18.1.0/24"], "comment": "Ünïcode"}],
    }  # fmt: skip
    assert served(**options) == 1
    assert open_from(client) == LISTENING
    assert 'log prefix "stepladder drop: "' in table(host)
    assert served(**options) == 0


def test_rules_that_would_lock_the_controller_out_are_put_back(host):
    before = everything(host)
    code, _, said = play(firewall_allow=NEW_RULE, firewall_ssh_from=[CLIENT])
    assert code != 0
    assert f"firewall: with the new configuration no new SSH connection to {ADDRESS} succeeds (" in said
    assert "The old one was put back. Let this controller in with firewall_ssh_port and firewall_ssh_from." in said
    assert everything(host) == before
    assert new_login()


def test_a_first_run_with_another_ssh_port_leaves_no_firewall(host, client):
    assert served(firewall_enabled=False) > 0
    before = everything(host)
    code, _, said = play(firewall_ssh_port=2222)
    assert code != 0 and "The old one was put back." in said
    assert everything(host) == before and table(host) == ""
    assert open_from(client) == LISTENING and new_login()


def locked_out(host, seconds):
    """Apply rules that keep the controller out, with a controller that dies before it can put anything back."""
    words = command(firewall_allow=NEW_RULE, firewall_ssh_from=[CLIENT], firewall_confirm_seconds=seconds)
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=SCENARIO)
    try:
        assert until(lambda: MARK in table(host))
    finally:
        for pid in family(run.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.wait()


def test_the_host_puts_the_rules_back_by_itself_when_the_controller_dies(host):
    before = everything(host)
    locked_out(host, seconds=8)
    assert not new_login()
    assert until(lambda: MARK not in table(host))
    assert until(lambda: everything(host) == before, 5), everything(host)
    assert new_login()
    assert served() == 0


def test_a_reboot_before_the_rules_were_confirmed_brings_the_old_ones_back(host):
    before = everything(host)
    locked_out(host, seconds=3600)
    assert not new_login()
    reboot(host)
    assert everything(host) == before
    said = host.check_output("journalctl -b -o cat -u stepladder-guard-firewall-boot.service")
    assert "Finished stepladder-guard-firewall-boot.service" in said
    assert served() == 0


def test_tables_of_others_stay_as_they_are(host):
    host.check_output(f"nft -f - <<'END'\n{OTHERS}\nEND")
    others = "nft -s list table inet others; nft -s list table ip others_nat; nft -s list table ip nat 2>&1"
    before = host.check_output(others)
    try:
        assert "198.51.100.7" in before and "DOCKER_OUTPUT" in before
        assert served(firewall_allow=NEW_RULE) == 1
        assert host.check_output(others) == before
        assert served(firewall_enabled=False) > 0
        assert host.check_output(others) == before
        assert served() > 0
        assert host.check_output(others) == before
    finally:
        host.check_output("nft delete table inet others; nft delete table ip others_nat")


@pytest.mark.parametrize(
    "by_hand",
    [
        "nft delete table inet stepladder",
        "nft add rule inet stepladder input tcp dport 8013 accept",
    ],
)
def test_what_was_changed_by_hand_is_noticed_and_mended(host, by_hand):
    before = everything(host)
    host.check_output(by_hand)
    found = everything(host)
    assert served("--check", "--diff") == 1
    assert everything(host) == found
    assert served() == 1
    assert everything(host) == before


def test_switched_off_means_gone_and_nothing_else(host, client):
    assert served("--check", firewall_enabled=False) > 0 and table(host)
    assert served(firewall_enabled=False) > 0
    assert "inet stepladder" not in host.check_output("nft list tables")
    assert not [name for name in FILES if host.file(name).exists]
    assert host.run(f"systemctl cat {UNIT}").rc != 0 and host.package("nftables").is_installed
    assert open_from(client) == LISTENING
    assert served(firewall_enabled=False) == 0
    assert served("--check") > 0 and table(host) == ""


def test_bad_data_is_refused_before_anything_changes(host):
    before = everything(host)
    for data, sentences in WRONG:
        code, _, said = play(**data)
        assert code != 0 and [words for words in sentences if words not in said] == [], said[-2000:]
        assert not sentences or "firewall changed nothing." in said
    assert everything(host) == before


def test_rules_are_there_after_a_reboot_before_the_network(host, client):
    before = everything(host)
    reboot(host)
    assert everything(host) == before
    when = "systemctl show --value -p ActiveEnterTimestampMonotonic "
    assert 0 < int(host.check_output(when + UNIT)) <= int(host.check_output(when + "network-pre.target"))
    assert open_from(client, knocks=["tcp:8001", "tcp:8002", "tcp:8003"]) == ["tcp:8001", "tcp:8002"]
    assert served() == 0


def test_beside_the_distributions_nftables_service(host, client):
    """Last, because that one's file flushes Docker's rules too; the reboot brings them back."""
    host.check_output("systemctl enable nftables.service")
    try:
        reboot(host)
        assert "policy drop" in table(host)
        for verb in ("restart", "reload"):
            host.check_output(f"systemctl {verb} nftables.service")
            assert until(lambda: "policy drop" in table(host), 5), verb
        assert open_from(client, knocks=["tcp:8001", "tcp:8003"]) == ["tcp:8001"]
    finally:
        host.check_output("systemctl disable nftables.service")
        reboot(host)
