"""What the role promises, asked of two hosts that share an address: who has it, when it moves, and when it does not."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import testinfra

SCENARIO = Path(__file__).resolve().parents[1]
PREFIX, DEBIAN = os.environ.get("STEPLADDER_SCENARIO", "keepalived"), os.environ.get("STEPLADDER_DEBIAN", "13")
FIRST, SECOND = f"{PREFIX}-debian{DEBIAN}", f"{PREFIX}-second-debian{DEBIAN}"
OWN = {FIRST: f"198.18.1.{DEBIAN}5", SECOND: f"198.18.1.{DEBIAN}6"}
SHARED = f"198.18.1.{DEBIAN}7"
HOSTS = {name: testinfra.get_host(f"docker://{name}") for name in OWN}


def play(*words, limit="edge", **variables):
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--limit", limit]
    command += [str(SCENARIO / "converge.yml"), "-e", json.dumps(variables), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=SCENARIO.parents[1])


def played(*words, **more):
    done = play(*words, **more)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def running():
    listed = subprocess.run(["docker", "ps", "--format", "{{.Names}}"], check=True, capture_output=True, text=True)
    return [name for name in HOSTS if name in listed.stdout.split()]


def holders():
    return [n for n in running() if f" {SHARED}/24" in HOSTS[n].run("ip -4 address show dev eth0").stdout]


def until(what, seconds):
    """Wait until what() holds; gives the seconds that it took."""
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        if what():
            return time.monotonic() - started
        time.sleep(0.1)
    pytest.fail(f"not within {seconds} s: {holders()}")


def served_by(asker):
    return HOSTS[asker].run(f"curl -s -m 2 http://{SHARED}/").stdout


SINCE = dict.fromkeys(OWN, "0")


def states(name):
    """What the host was told of its changes since forget()."""
    told = HOSTS[name].run(f"journalctl -q -t note -o cat --since @{SINCE[name]}").stdout
    return [line.split()[0] for line in told.splitlines()]


def forget():
    for name in running():
        SINCE[name] = HOSTS[name].check_output("date +%s.%N")


@pytest.fixture
def pair():
    """(the host that has the address, the other one), both well, and nothing told yet."""
    for name in OWN:
        HOSTS[name].check_output("systemctl start haproxy-edge keepalived-edge")
    until(lambda: len(holders()) == 1, 20)
    [holder] = holders()
    [other] = set(OWN) - {holder}
    until(lambda: states(other)[-1:] in ([], ["BACKUP"]), 20)
    forget()
    return holder, other


def test_one_host_has_the_address_and_serves(pair):
    holder, other = pair
    assert served_by(other) == holder
    assert HOSTS[holder].run(f"curl -s http://{SHARED}/").stdout == holder


def test_address_moves_when_the_proxy_is_stopped_and_stays_when_it_is_back(pair):
    holder, other = pair
    HOSTS[holder].check_output("systemctl stop haproxy-edge")
    until(lambda: holders() == [other], 15)
    assert served_by(holder) == other
    HOSTS[holder].check_output("systemctl start haproxy-edge")
    until(lambda: states(holder) == ["FAULT", "BACKUP"], 15)
    time.sleep(4)
    assert holders() == [other]
    assert (states(holder), states(other)) == (["FAULT", "BACKUP"], ["MASTER"]), "it moved once"


def test_address_moves_when_the_proxy_hangs(pair):
    holder, other = pair
    HOSTS[holder].check_output("systemctl kill -s STOP haproxy-edge")
    try:
        until(lambda: holders() == [other], 25)
        assert served_by(holder) == other
    finally:
        HOSTS[holder].check_output("systemctl kill -s CONT haproxy-edge")


def test_address_moves_when_the_host_is_gone_and_stays_when_it_is_back(pair):
    holder, other = pair
    subprocess.run(["docker", "kill", holder], check=True, capture_output=True)
    moved = until(lambda: holders() == [other], 15)
    subprocess.run(["docker", "start", holder], check=True, capture_output=True)
    until(lambda: HOSTS[holder].run("systemctl is-active keepalived-edge haproxy-edge").rc == 0, 60)
    until(lambda: states(holder)[-1:] == ["BACKUP"], 15)
    time.sleep(4)
    assert holders() == [other] and served_by(holder) == other
    assert states(other) == ["MASTER"], f"it moved once, after {moved:.1f} s"


def test_better_host_takes_the_address_back_by_choice(pair):
    if pair[0] == FIRST:
        HOSTS[FIRST].check_output("systemctl restart keepalived-edge")
        until(lambda: holders() == [SECOND], 8)
    try:
        played(keepalived_preempt=True, keepalived_preempt_seconds=3)
        until(lambda: holders() == [FIRST], 20)
    finally:
        played()


def test_commands_run_as_their_user(pair):
    holder, other = pair
    HOSTS[holder].check_output("systemctl restart keepalived-edge")
    until(lambda: holders() == [other], 15)
    until(lambda: states(other) == ["MASTER"], 5)
    assert HOSTS[other].check_output("journalctl -q -t note -o cat -n 1") == "MASTER haproxy"


def test_hosts_speak_to_their_peers_and_believe_nobody_else(pair):
    holder, other = pair
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112); s.settimeout(5); d = s.recv(99); "
        "print(socket.inet_ntoa(d[12:16]), socket.inet_ntoa(d[16:20]))"
    )
    assert HOSTS[other].check_output("python3 -c %s", script).split() == [OWN[holder], OWN[other]]
    # A stranger's word, of the highest priority, from the address that nobody has but the holder itself.
    forged = (
        "import socket, struct, sys, time\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112); s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)\n"
        "s.bind((sys.argv[1], 0)); shared = socket.inet_aton(sys.argv[3])\n"
        "data = struct.pack('!BBBBBBH', 0x21, int(sys.argv[4]), 255, 1, 0, 1, 0) + shared + bytes(8)\n"
        "total = sum(struct.unpack(f'!{len(data) // 2}H', data)); total = (total >> 16) + (total & 0xffff)\n"
        "data = data[:6] + struct.pack('!H', ~(total + (total >> 16)) & 0xffff) + data[8:]\n"
        "for _ in range(8): s.sendto(data, (sys.argv[2], 0)); time.sleep(0.5)\n"
    )
    stranger = f"198.18.1.{DEBIAN}8"
    HOSTS[other].check_output(f"ip address add {stranger}/24 dev eth0")
    try:
        HOSTS[other].check_output(
            "python3 -c %s %s %s %s %s", forged, stranger, OWN[holder], SHARED, str(100 + int(DEBIAN))
        )
    finally:
        HOSTS[other].check_output(f"ip address del {stranger}/24 dev eth0")
    assert holders() == [holder] and states(holder) == []


def test_second_run_changes_nothing_and_a_change_moves_nothing(pair):
    holder, other = pair
    before = [HOSTS[name].check_output("systemctl show -P MainPID keepalived-edge") for name in OWN]
    assert re.findall(r"changed=(\d+)", played()) == ["0", "0"]
    checked = played("--check", "--diff", keepalived_check_fall=4)
    assert "+    fall 4" in checked and re.findall(r"changed=(\d+)", checked) == ["2", "2"]
    played(keepalived_check_fall=4)
    played()
    assert [HOSTS[name].check_output("systemctl show -P MainPID keepalived-edge") for name in OWN] == before
    assert holders() == [holder] and states(holder) == states(other) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"keepalived_addresses": ["198.18.1.9"]}, "keepalived_addresses has 198.18.1.9. Give an address with the bits"),
        ({"keepalived_check": "/tmp/none"}, "Every file was put back as it was"),
    ],
    ids=["by the role", "by keepalived"],
)  # fmt: skip
def test_what_cannot_work_is_refused_and_the_address_stays(pair, more, words):
    holder, other = pair
    before = HOSTS[holder].file("/etc/keepalived-edge/keepalived.conf").content_string
    refused = play(**more)
    assert refused.returncode != 0 and words in re.sub(r"\s+", " ", refused.stdout)
    assert HOSTS[holder].file("/etc/keepalived-edge/keepalived.conf").content_string == before
    assert holders() == [holder] and states(holder) == []


def test_service_is_kept_in_and_debians_own_is_masked():
    host = HOSTS[FIRST]
    score = re.search(r"level for .*: ([0-9.]+)", host.check_output("systemd-analyze security keepalived-edge"))[1]
    assert float(score) <= 3.5, score
    assert host.check_output("systemctl show -P LoadState,ActiveState keepalived").split() == ["masked", "inactive"]
