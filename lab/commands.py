"""What ./ladder's commands do with the lab."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import docker
import yaml
from docker.errors import APIError, DockerException, ImageNotFound
from rich.markup import escape

from lab import ansible, cache, hosts, image, inventory, machine, names
from lab.machine import MachineError
from lab.model import Lab, State
from lab.report import console, step, table

DEFAULT_DEBIAN = "13"


def connect() -> docker.DockerClient:
    """A client of a Docker engine that answers; installs or starts one when it must."""
    machine.ensure_engine()
    try:
        return docker.from_env(timeout=600)
    except DockerException as error:
        raise MachineError(f"The Docker engine does not answer: {error}") from error


def say(text: str) -> None:
    console.print(escape(text))


def prepare_roles(client: docker.DockerClient, debian: str) -> None:
    """What molecule's scenarios stand on: the image, their network, the package caches."""
    image.ensure_host_image(client, cache.CACHE_DEBIAN, say)
    image.ensure_host_image(client, debian, say)
    hosts.ensure_molecule_network(client)
    cache.ensure_cache(client, [names.MOLECULE_NETWORK], say)


def choose_debian(lab: Lab, state: State, wanted: str | None, existing: list[str]) -> str:
    """The Debian version of the lab's hosts; raises MachineError when there are hosts of another one."""
    if existing and state.debian and wanted and wanted != state.debian:
        raise MachineError(
            f"The lab {lab.name} runs Debian {state.debian}, not {wanted}, and its hosts have data. "
            "Nothing was changed. Run ./ladder down first, or leave --debian away."
        )
    return (state.debian if existing else None) or wanted or DEFAULT_DEBIAN


def up(lab: Lab, stage: int | None, debian: str | None) -> int:
    """Make the lab's hosts and run a stage on them; growth when a lower stage runs already."""
    state = lab.load()
    existing_stages = inventory.stages(lab.root)
    if stage is None:
        stage = state.stage or max(existing_stages, default=1)
    stage_hosts = inventory.read_hosts(inventory.stage_file(lab.root, stage))
    if stage < state.stage:
        raise MachineError(
            f"The lab {lab.name} is at stage {state.stage} already. Run ./ladder up {state.stage}, "
            f"or ./ladder down and then ./ladder up {stage}."
        )
    machine.need_program("ssh", ["openssh-client"], "the SSH client")
    client = connect()
    state.debian = choose_debian(lab, state, debian, list(hosts.find_hosts(client, lab.name)))
    make_hosts(client, lab, state, list(stage_hosts))
    provision(lab, stage)
    state.stage = stage
    lab.save(state)
    show(client, lab, stage_hosts)
    return 0


def make_hosts(client: docker.DockerClient, lab: Lab, state: State, wanted: list[str]) -> None:
    """Image, network, caches, containers; each is left alone when it is as it should be."""
    with step("Image and package caches"):
        image.ensure_host_image(client, cache.CACHE_DEBIAN, say)
        tag = image.ensure_host_image(client, state.debian, say)
    with step("Network"):
        hosts.ensure_network(client, lab, state)
        lab.save(state)
        cache.ensure_cache(client, [lab.name], say)
    with step(f"Hosts {', '.join(wanted)}") as update:
        lab.need_control_folder()
        lab.need_key()
        started, outdated = hosts.ensure_hosts(client, lab, state, wanted, tag)
        if started:
            lab.close_connections()
        lab.save(state)
        lab.write_inventory(state.addresses)
        for host in wanted:
            update(host)
            hosts.wait_until_up(client, lab, host, state.addresses[host])
        hosts.collect_host_keys(client, lab, state.addresses)
    if outdated:
        say(f"{', '.join(outdated)}: made from an older image; ./ladder down and up renews them (and their data goes).")


def provision(lab: Lab, stage: int) -> None:
    """Run the stage's playbook; raises MachineError with the part of the output that tells why it failed."""
    log = lab.logs / f"stage{stage}.log"
    command = ansible.playbook_command(lab, inventory.stage_file(lab.root, stage), [f"playbooks/stage{stage}.yml"])
    with step(f"Stage {stage}: ansible-playbook") as update:
        code, output = ansible.run_logged(command, log, update)
        if code != 0:
            raise MachineError(f"{ansible.failure(output)}\n\nThe whole log: {log}")
    changed = {host: counts["changed"] for host, counts in ansible.recap(output).items() if counts["changed"]}
    listed = ", ".join(f"{host} {count}" for host, count in changed.items())
    say(f"{f'Changed: {listed}.' if listed else 'Nothing had to be changed.'} What Ansible said: {log}")


def site_settings(lab: Lab) -> dict:
    """The lab's site settings, for what is shown to a person; empty when there are none."""
    path = lab.root / "inventories/lab/group_vars/site.yml"
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def authority(lab: Lab) -> Path | None:
    """The certificate of the environment's CA; None before the first run has made it."""
    return next(iter(sorted((lab.folder / "secrets").rglob("ca.pem"))), None)


def show(client: docker.DockerClient, lab: Lab, stage_hosts: dict[str, list[str]]) -> None:
    """The table that `up` and `status` end with, and what to type next."""
    state = lab.load()
    containers = hosts.find_hosts(client, lab.name)
    rows = []
    for host, groups in stage_hosts.items():
        container = containers.get(host)
        status = container.status if container else "not there"
        colour = "green" if status == "running" else "red"
        rows.append([host, state.addresses.get(host, ""), ", ".join(groups), f"[{colour}]{status}[/{colour}]"])
    console.print(f"\nLab {lab.name}: stage {state.stage or '-'}, Debian {state.debian or '-'}, network {state.subnet}")
    console.print(table(["host", "address", "groups", "state"], rows))
    door = front_door(stage_hosts)
    if door in state.addresses and state.stage:
        show_site(lab, state.addresses[door])
    first = next(iter(stage_hosts))
    console.print(f"Log in        ./ladder ssh {first}   (user admin; sudo asks no password)")
    console.print(
        f"Look further  ./ladder logs {first} ssh   ./ladder play playbooks/stage{state.stage or 1}.yml --check --diff   ./ladder down"
    )


def front_door(stage_hosts: dict[str, list[str]]) -> str:
    """The host that people reach: the first of `edge`, else the first of `web`; "" when there is neither."""
    for group in ("edge", "web"):
        for host, groups in stage_hosts.items():
            if group in groups:
                return host
    return ""


def show_site(lab: Lab, address: str) -> None:
    """Where the site answers and how to ask it with its certificate verified."""
    hostnames = site_settings(lab).get("site_hostnames") or [address]
    console.print(f"\nThe site      https://{address}/   as https://{hostnames[0]}/")
    trusted = authority(lab)
    if trusted:
        trusted = trusted.relative_to(Path.cwd()) if trusted.is_relative_to(Path.cwd()) else trusted
        console.print(f"Its CA        {trusted}", soft_wrap=True)
        line = (
            f"curl --resolve {hostnames[0]}:443:{address} --cacert {shlex.quote(str(trusted))} https://{hostnames[0]}/"
        )
        console.print(f"Try           {line}", soft_wrap=True)


def status(lab: Lab) -> int:
    """Show the lab as it is; says so when there is none."""
    state = lab.load()
    if not lab.folder.exists() or not state.debian:
        say(f"There is no lab {lab.name}. ./ladder up makes it.")
        return 0
    stage = state.stage or max(inventory.stages(lab.root))
    show(connect(), lab, inventory.read_hosts(inventory.stage_file(lab.root, stage)))
    return 0


def down(lab: Lab, everything: bool) -> int:
    """Remove the lab; with `everything` also images and caches that no other lab uses."""
    client = connect()
    with step(f"Removing the lab {lab.name}"):
        removed = hosts.remove_lab(client, lab.name)
        lab.forget()
    say(f"Removed: {removed} containers, networks and volumes." if removed else "There was nothing to remove.")
    if everything:
        down_shared(client, lab)
    return 0


def down_shared(client: docker.DockerClient, lab: Lab) -> None:
    """Remove what labs share, unless a lab or a scenario that is there still stands on it."""
    label = names.LAB_LABEL
    running = client.containers.list(all=True, filters={"label": label})
    others = sorted({item.labels[label] for item in running if item.labels[label] != names.SHARED})
    if others:
        say(f"Images and caches stay: {', '.join(others)} still use them.")
        return
    with step("Removing images and caches"):
        hosts.remove_lab(client, names.SHARED)
        hosts.remove_lab(client, names.MOLECULE)
        # An image goes after those that are built on it.
        for tag in ("stepladder/cache", "stepladder/builder", "stepladder/host", "stepladder/base"):
            for found in client.images.list(name=tag):
                remove_image(client, found.id)
        shutil.rmtree(lab.root / ".cache", ignore_errors=True)


def remove_image(client: docker.DockerClient, identifier: str) -> None:
    try:
        client.images.remove(identifier, force=True)
    except ImageNotFound:
        return
    except APIError as error:
        say(f"An image stays: {error.explanation}")


def ssh(lab: Lab, host: str, words: list[str]) -> int:
    """Log in to a host, or run one command there; gives its exit code."""
    command = lab.ssh_command(host)
    return subprocess.run([*command, *(["--", *words] if words else [])]).returncode


def logs(lab: Lab, host: str, unit: str | None) -> int:
    """Show the end of a host's journal, of one unit or of all; raises MachineError for a unit that is not there."""
    words = ["sudo", "journalctl", "--no-pager", "-n", "100"]
    if not unit:
        return ssh(lab, host, words)
    command = [*lab.ssh_command(host), "--"]
    done = subprocess.run([*command, *words, "--quiet", "-u", shlex.quote(unit)], stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    if done.returncode or done.stdout:
        return done.returncode
    if subprocess.run([*command, "systemctl", "cat", "--", shlex.quote(unit)], capture_output=True).returncode:
        raise MachineError(
            f"The host {host} has no unit {unit}. Those that it has: ./ladder ssh {host} systemctl list-units --all"
        )
    console.print(f"The journal of {host} has nothing of {unit} yet.", markup=False)
    return 0


def play(lab: Lab, arguments: list[str]) -> int:
    """ansible-playbook with the lab's inventory; takes the place of this process."""
    state = lab.load()
    if not lab.hosts_file.exists():
        raise MachineError(f"There is no lab {lab.name}. ./ladder up makes it.")
    source = inventory.stage_file(lab.root, state.stage or max(inventory.stages(lab.root)))
    command = ansible.playbook_command(lab, source, arguments)
    os.execve(command[0], command, ansible.surroundings())
