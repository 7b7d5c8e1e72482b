"""./ladder bench: one host with all of stage 1, or the fleet of stage 4, measured. A table to read, not a test.

A busy machine is no failure. All load is made on the lab's own hosts against themselves, and ends after a fixed time.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import docker
from docker.models.containers import Container

from lab import ansible, commands, hosts, inventory, rehearsal
from lab.machine import MachineError, tail
from lab.model import ROOT, Lab, State
from lab.report import console, duration, step, table
from lab.traffic import PRODUCTS

HOST = "one"
FLEET_STAGE = 4
ADDED = "web2"
WEB_PORT = 8444  # where the web hosts answer the edge
LOAD_SECONDS = 8
ROUNDS = 4
PGBENCH_SCALE = 10
BARE_PORT = 8999
DEFAULTS_PORT = 5499


@dataclass(frozen=True)
class Measured:
    """One line of the table: what was measured, the value as text, and what to hold it against."""

    what: str
    value: str
    against: str = ""


def run(lab: Lab, debian: str, stage: int) -> int:
    """Make a lab for the benchmark, measure, show the table, remove the lab."""
    own = Lab(f"{lab.name}-bench", lab.root)
    client = commands.connect()
    hosts.remove_lab(client, own.name)
    own.forget()
    measured: list[Measured] = []
    measure, title = {1: (one_host, "Stage 1 on one host"), FLEET_STAGE: (fleet, "Stage 4 on a fleet")}[stage]
    try:
        measure(client, own, debian, lab.logs, measured)
    finally:
        rows = [[item.what, item.value, item.against] for item in measured]
        if rows:
            console.print(f"\n{title}, Debian {debian}")
            console.print(table(["what", "measured", "against"], rows))
        hosts.remove_lab(client, own.name)
        own.forget()
    return 0


def one_host(client: docker.DockerClient, own: Lab, debian: str, logs: Path, measured: list[Measured]) -> None:
    """All of stage 1 on one host; what was measured is added to `measured` as it comes."""
    measured += from_nothing(client, own, debian, logs)
    measured += no_change(own, logs)
    container = hosts.find_hosts(client, own.name)[HOST]
    measured += requests(container, commands.site_settings(own))
    measured += transactions(container)


def source(lab: Lab) -> Path:
    return lab.root / "inventories/lab/bench.yml"


def fleet(client: docker.DockerClient, own: Lab, debian: str, logs: Path, measured: list[Measured]) -> None:
    """Stage 4 on its lab inventory: a web host that is added, a run without changes, requests through the edge."""
    whole = inventory.stage_file(own.root, FLEET_STAGE)
    names = list(inventory.read_hosts(whole))
    commands.prepare_roles(client, debian)
    state = State(debian=debian)
    with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
        smaller = inventory.without(own.root, FLEET_STAGE, ADDED, Path(folder))
        commands.make_hosts(client, own, state, [name for name in names if name != ADDED])
        play_stage(own, smaller, FLEET_STAGE, logs / "bench-first.log")
    started = time.monotonic()
    commands.make_hosts(client, own, state, names)
    play_stage(own, whole, FLEET_STAGE, logs / "bench-add.log")
    measured.append(Measured("a web host more, from no machine to serving", duration(time.monotonic() - started)))
    state.stage = FLEET_STAGE
    own.save(state)
    measured += no_change_of_fleet(own, whole, logs)
    # An empty shop has a front page that no visitor would see.
    rehearsal.manage(own, "seed_shop", "--products", str(PRODUCTS))
    edge = next(host for host, groups in inventory.read_hosts(whole).items() if "edge" in groups)
    web = [own.load().addresses[host] for host, groups in inventory.read_hosts(whole).items() if "web" in groups]
    containers = hosts.find_hosts(client, own.name)
    others = [container for host, container in containers.items() if host != edge]
    measured += requests_through_edge(containers[edge], others, web, commands.site_settings(own))


def no_change_of_fleet(lab: Lab, whole: Path, logs: Path) -> list[Measured]:
    """Seconds and remote calls per host of a run of the stage that has nothing to change."""
    tally = lab.folder / "remote-calls"
    started = time.monotonic()
    output = play_stage(lab, whole, FLEET_STAGE, logs / "bench-no-change.log", counting(tally))
    seconds = time.monotonic() - started
    addresses = {address: host for host, address in lab.load().addresses.items()}
    calls = Counter(addresses.get(line, line) for line in tally.read_text().splitlines())
    changed = sum(counts["changed"] for counts in ansible.recap(output).values())
    return [
        Measured("no-change run: time", duration(seconds), f"{seconds / len(addresses):.1f} s for each of {len(addresses)} hosts"),
        Measured("no-change run: remote calls", str(calls.total()), ", ".join(f"{host} {n}" for host, n in sorted(calls.items()))),
        Measured("no-change run: changes", str(changed), "0"),
        Measured("no-change run: hosts that Ansible talks with at a time", str(forks(lab.root)), "its forks"),
    ]  # fmt: skip


def forks(root: Path) -> int:
    """How many hosts a run of Ansible talks with at a time: what the environment says, else the kit's ansible.cfg."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / "ansible.cfg")
    return int(os.environ.get("ANSIBLE_FORKS") or config["defaults"]["forks"])


def processor_seconds(edge: Container, others: list[Container]) -> tuple[float, float]:
    """What HAProxy and the journal of the edge have taken so far, and what all other hosts have (they hold no load generator)."""
    read = r"awk '$2 ~ /^\((haproxy|systemd-journal)\)$/ {ticks += $14 + $15} END {print ticks}' /proc/[0-9]*/stat 2>/dev/null || true"
    ticks = float(execute(edge, read).split()[0])
    used = [
        container.stats(stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"] for container in others
    ]
    return ticks / os.sysconf("SC_CLK_TCK"), sum(used) / 1e9


def requests_through_edge(edge: Container, others: list[Container], web: list[str], settings: dict) -> list[Measured]:
    """Requests a second through the edge, and from the edge's host straight to the web hosts.

    Once for the front page, as people ask for it, and once for the health page, which costs Django next to nothing and so
    shows the most that the edge can cost. All hosts share one machine's processors here, and what else it does blurs rates; the
    edge's part of the processor time is the steadier number, and the one that counts where each host has its own.
    """
    hostname, health = settings["site_hostnames"][0], settings.get("site_health_path", "/healthz")
    load = f"wrk -t1 -d{LOAD_SECONDS}s"

    def at(address: str, connections: int, port: int, path: str) -> str:
        """wrk with a hosts file of its own, so that each of several has another address for the same name."""
        inner = f"echo {address} {hostname} > /etc/hosts; {load} -c{connections} https://{hostname}:{port}{path}"
        bind = "cp /etc/hosts /run/hosts.$$ && mount --bind /run/hosts.$$ /etc/hosts"
        return f"unshare --mount sh -c {shlex.quote(f'{bind} && {inner}')}"

    def through(path: str) -> float:
        return wrk_rate(execute(edge, at("127.0.0.1", 16, 443, path)))

    def direct(path: str) -> float:
        each = [f"{at(address, 16 // len(web), WEB_PORT, path)} > /run/wrk.{n}" for n, address in enumerate(web)]
        command = " & ".join(each) + " & wait; cat /run/wrk.*"
        output = execute(edge, command)
        return sum(wrk_rate(part) for part in re.split(r"(?m)^(?=Running )", output) if part.strip())

    found = []
    with step("Requests through the edge, and straight to the web hosts"):
        execute(edge, "DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends wrk")
        for title, path, goal in (("front page", "/", " (goal: 0.9)"), ("health page", health, "")):
            before = processor_seconds(edge, others)
            through(path)
            mine, theirs = (
                later - earlier for earlier, later in zip(before, processor_seconds(edge, others), strict=True)
            )
            edged, straight = take_turns(partial(through, path), partial(direct, path))
            share = f"{edged / straight:.2f} of straight to them{goal}"
            found += [
                Measured(f"{title}: requests/s through edge, nginx and Gunicorn", f"{edged:.0f}", share),
                Measured(f"{title}: requests/s straight to nginx and Gunicorn of the web hosts", f"{straight:.0f}"),
                Measured(
                    f"{title}: the edge's part of the processor time", f"{mine / (mine + theirs):.0%}",
                    f"leaves {theirs / (mine + theirs):.2f}{goal}",
                ),
            ]  # fmt: skip
    return found


def from_nothing(client: docker.DockerClient, lab: Lab, debian: str, logs: Path) -> list[Measured]:
    """Seconds from no host at all until the site answers over HTTPS with its certificate verified.

    The image and the package caches are there; what the caches lack is fetched and counts.
    """
    commands.prepare_roles(client, debian)
    started = time.monotonic()
    state = State(debian=debian)
    commands.make_hosts(client, lab, state, list(inventory.read_hosts(source(lab))))
    play(lab, logs / "bench-first.log")
    state.stage = 1
    lab.save(state)
    answer(lab, state.addresses[HOST])
    return [Measured("from nothing to answering", duration(time.monotonic() - started), "goal: 4 min, warm caches")]


def play(lab: Lab, log: Path, more: dict[str, str] | None = None) -> str:
    """Run stage 1 on the bench's host; gives Ansible's output, raises MachineError when it fails."""
    return play_stage(lab, source(lab), 1, log, more)


def play_stage(lab: Lab, hosts_file: Path, stage: int, log: Path, more: dict[str, str] | None = None) -> str:
    """Run a stage on an inventory; gives Ansible's output, raises MachineError when it fails."""
    command = ansible.playbook_command(lab, hosts_file, [f"playbooks/stage{stage}.yml"])
    with step(f"Stage {stage}: ansible-playbook") as update:
        code, output = ansible.run_logged(command, log, update, more)
    if code != 0:
        raise MachineError(f"{ansible.failure(output)}\n\nThe whole log: {log}")
    return output


def answer(lab: Lab, address: str) -> None:
    """Ask the site for its health by its name until it answers; raises MachineError after a minute."""
    settings = commands.site_settings(lab)
    hostname, path = settings["site_hostnames"][0], settings.get("site_health_path", "/healthz")
    context = ssl.create_default_context(cafile=str(commands.authority(lab)))
    deadline = time.monotonic() + 60
    while True:
        try:
            status = ask(address, hostname, path, context)
        except OSError as error:
            status = str(error)
        if status == "200":
            return
        if time.monotonic() > deadline:
            raise MachineError(f"https://{hostname}{path} at {address} does not answer as it should: {status}")
        time.sleep(0.5)


def ask(address: str, hostname: str, path: str, context: ssl.SSLContext) -> str:
    """The status (200) of one request to a site that goes by another name than its address."""
    with (
        socket.create_connection((address, 443), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=hostname) as stream,
    ):
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {hostname}\r\nConnection: close\r\n\r\n".encode())
        return (stream.recv(64).decode(errors="replace").split() or ["", "nothing"])[1]


def no_change(lab: Lab, logs: Path) -> list[Measured]:
    """Remote calls and seconds of a run of stage 1 that has nothing to change."""
    tally = lab.folder / "remote-calls"
    started = time.monotonic()
    output = play(lab, logs / "bench-no-change.log", counting(tally))
    seconds = time.monotonic() - started
    changed = sum(counts["changed"] for counts in ansible.recap(output).values())
    calls = len(tally.read_text().splitlines())
    return [
        Measured("no-change run: remote calls", str(calls), "goal: 30"),
        Measured("no-change run: time", duration(seconds), "goal: 10 s"),
        Measured("no-change run: changes", str(changed), "0"),
    ]


def counting(tally: Path) -> dict[str, str]:
    """The environment in which Ansible notes each remote call in a file."""
    return {
        # The kit's own beside it: this takes the place of what ansible.cfg says, and a run without them is another run.
        "ANSIBLE_CALLBACK_PLUGINS": f"{ROOT / 'plugins/callback'}:{Path(__file__).parent / 'callbacks'}",
        "ANSIBLE_CALLBACKS_ENABLED": "remote_calls",
        "LADDER_REMOTE_CALLS": str(tally),
    }


def execute(container: Container, command: str) -> str:
    """Run a shell command on the host as root; gives its output, raises MachineError when it fails."""
    done = container.exec_run(["bash", "-euo", "pipefail", "-c", command])
    output = done.output.decode(errors="replace")
    if done.exit_code != 0:
        raise MachineError(f"On {container.name}: {command}\nended with {done.exit_code}:\n{tail(output, 20)}")
    return output


def wrk_rate(output: str) -> float:
    """Requests per second from wrk's report; answers other than 2xx and 3xx make the number worthless."""
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if not found or "Non-2xx" in output:
        raise MachineError(f"wrk's report cannot be used:\n{tail(output, 15)}")
    return float(found[1])


def pgbench_rate(output: str) -> float:
    """Transactions per second from pgbench's report, without the time to connect."""
    found = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    if not found:
        raise MachineError(f"pgbench's report cannot be used:\n{tail(output, 15)}")
    return float(found[1])


def take_turns(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """The best of some rounds each, in turns, so that a busy moment of the machine hits both."""
    rounds = [(first(), second()) for _ in range(ROUNDS)]
    return max(one for one, _ in rounds), max(two for _, two in rounds)


def requests(container: Container, settings: dict) -> list[Measured]:
    """Requests a second for the health page through nginx with TLS, and straight from an equal Gunicorn."""
    name = settings["site_name"]
    hostname, path = settings["site_hostnames"][0], settings.get("site_health_path", "/healthz")
    with step("Requests through nginx and Gunicorn, and from Gunicorn alone"):
        execute(container, "DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends wrk")
        execute(container, f"grep -q ' {hostname}$' /etc/hosts || echo 127.0.0.1 {hostname} >> /etc/hosts")
        start_bare_gunicorn(container, name, hostname, path)
        load = f"wrk -t1 -c16 -d{LOAD_SECONDS}s -H {shlex.quote('Host: ' + hostname)} -H 'X-Forwarded-Proto: https'"
        through, bare = take_turns(
            lambda: wrk_rate(execute(container, f"{load} https://{hostname}{path}")),
            lambda: wrk_rate(execute(container, f"{load} http://127.0.0.1:{BARE_PORT}{path}")),
        )
        execute(container, "systemctl stop bench-gunicorn.service")
    share = f"{100 * through / bare:.0f} % of Gunicorn alone"
    return [
        Measured("requests/s through nginx (TLS) and Gunicorn", f"{through:.0f}", share),
        Measured("requests/s from Gunicorn alone", f"{bare:.0f}"),
    ]


def start_bare_gunicorn(container: Container, name: str, hostname: str, path: str) -> None:
    """Start a second Gunicorn with the live one's own unit, but on a port and without nginx."""
    unit = execute(container, f"systemctl list-units --plain --no-legend 'gunicorn-{name}@*.service'").split()[0]
    text = execute(container, f"systemctl cat {unit}")
    command = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)
    if not command:
        raise MachineError(f"{unit} has no ExecStart:\n{text}")
    kept = re.findall(r"^(?:Environment|EnvironmentFile|User|Group|WorkingDirectory)=.*$", text, re.MULTILINE)
    instance = unit.removesuffix(".service").partition("@")[2]
    shared = [line.replace("%i", instance) for line in kept]
    program = command[1].replace("%i", instance)
    lines = ["[Service]", "Type=exec", *shared, f"ExecStart={program} --bind 127.0.0.1:{BARE_PORT}"]
    unit_text = shlex.quote("\n".join(lines) + "\n")
    execute(container, f"printf %s {unit_text} > /run/systemd/system/bench-gunicorn.service; systemctl daemon-reload")
    execute(container, "systemctl start bench-gunicorn.service")
    ask = f"http://127.0.0.1:{BARE_PORT}{path}"
    probe = f"import urllib.request as u; u.urlopen(u.Request('{ask}', headers={{'Host': '{hostname}', 'X-Forwarded-Proto': 'https'}}))"
    execute(
        container,
        f"for i in $(seq 40); do python3 -c {shlex.quote(probe)} 2>/dev/null && exit; sleep 0.5; done; exit 1",
    )


def transactions(container: Container) -> list[Measured]:
    """pgbench's transactions a second with the role's settings, and on a cluster as the distribution makes it."""
    version = execute(container, "ls /etc/postgresql").split()[0]
    pgbench = f"/usr/lib/postgresql/{version}/bin/pgbench"

    def as_postgres(command: str) -> str:
        return execute(container, f"cd / && runuser -u postgres -- {command}")

    def rate(port: int) -> float:
        return pgbench_rate(as_postgres(f"{pgbench} -p {port} -c 8 -j 2 -T {LOAD_SECONDS} bench"))

    with step("Transactions with the role's settings, and with the distribution's"):
        execute(container, f"pg_createcluster --start {version} bench -p {DEFAULTS_PORT}")
        for port in (5432, DEFAULTS_PORT):
            as_postgres(f"createdb -p {port} bench")
            as_postgres(f"{pgbench} -q -p {port} -i -s {PGBENCH_SCALE} bench")
        ours, theirs = take_turns(lambda: rate(5432), lambda: rate(DEFAULTS_PORT))
        execute(container, f"pg_dropcluster --stop {version} bench")
    return [
        Measured(
            "transactions/s with the role's settings", f"{ours:.0f}", f"{100 * ours / theirs:.0f} % of the defaults'"
        ),
        Measured("transactions/s with the distribution's defaults", f"{theirs:.0f}", "no checksums, no statistics"),
    ]
