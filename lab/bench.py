"""./ladder bench: one host with all of stage 1, measured. A table to read, not a test: a busy machine is no failure.

All load is made on the host itself against its loopback, and ends after a fixed time.
"""

from __future__ import annotations

import re
import shlex
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.models.containers import Container

from lab import ansible, commands, hosts, inventory
from lab.machine import MachineError, tail
from lab.model import Lab, State
from lab.report import console, duration, step, table

HOST = "one"
LOAD_SECONDS = 8
ROUNDS = 2
PGBENCH_SCALE = 10
BARE_PORT = 8999
DEFAULTS_PORT = 5499


@dataclass(frozen=True)
class Measured:
    """One line of the table: what was measured, the value as text, and what to hold it against."""

    what: str
    value: str
    against: str = ""


def run(lab: Lab, debian: str) -> int:
    """Make a lab for the benchmark, measure, show the table, remove the lab."""
    own = Lab(f"{lab.name}-bench", lab.root)
    client = commands.connect()
    hosts.remove_lab(client, own.name)
    own.forget()
    measured: list[Measured] = []
    try:
        measured += from_nothing(client, own, debian, lab.logs)
        measured += no_change(own, lab.logs)
        container = hosts.find_hosts(client, own.name)[HOST]
        measured += requests(container, commands.site_settings(own))
        measured += transactions(container)
    finally:
        rows = [[item.what, item.value, item.against] for item in measured]
        if rows:
            console.print(f"\nStage 1 on one host, Debian {debian}")
            console.print(table(["what", "measured", "against"], rows))
        hosts.remove_lab(client, own.name)
        own.forget()
    return 0


def source(lab: Lab) -> Path:
    return lab.root / "inventories/lab/bench.yml"


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
    command = ansible.playbook_command(lab, source(lab), ["playbooks/stage1.yml"])
    with step("Stage 1: ansible-playbook") as update:
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
    more = {
        "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "remote_calls",
        "LADDER_REMOTE_CALLS": str(tally),
    }
    started = time.monotonic()
    output = play(lab, logs / "bench-no-change.log", more)
    seconds = time.monotonic() - started
    changed = sum(counts["changed"] for counts in ansible.recap(output).values())
    calls = len(tally.read_text().splitlines())
    return [
        Measured("no-change run: remote calls", str(calls), "goal: 30"),
        Measured("no-change run: time", duration(seconds), "goal: 10 s"),
        Measured("no-change run: changes", str(changed), "0"),
    ]


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
    """The better of two rounds each, in turns, so that a busy moment of the machine hits both."""
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
