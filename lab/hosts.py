"""The lab's network and hosts: made, recovered, removed."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import socket
import tarfile
import time
from pathlib import Path

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.networks import Network

from lab import cache, machine, names
from lab.model import Lab, State

START_SECONDS = 90
# What systemd needs in a container; SYS_PTRACE is for units with PrivateUsers=, DAC_READ_SEARCH for one that backs up everybody's files.
CAPABILITIES = ["SYS_ADMIN", "NET_ADMIN", "SYS_NICE", "SYS_PTRACE", "DAC_READ_SEARCH"]
SECURITY = ["seccomp=unconfined", "apparmor=unconfined"]
TMPFS = {"/run": "exec", "/run/lock": "", "/tmp": "exec"}
# What a machine's own kernel would have from the roles (role pgbouncer); a container may not set it.
KERNEL_SETTINGS = {"net.ipv4.tcp_migrate_req": "1"}


def taken_subnets(client: docker.DockerClient) -> list[ipaddress.IPv4Network]:
    """Networks that Docker or this machine already use."""
    taken = names.routes_networks((machine.PROC / "net/route").read_text())
    for network in client.networks.list():
        for config in (network.attrs.get("IPAM") or {}).get("Config") or []:
            subnet = ipaddress.ip_network(config.get("Subnet", "0.0.0.0/32"), strict=False)
            if isinstance(subnet, ipaddress.IPv4Network):
                taken.append(subnet)
    return taken


def create_network(client: docker.DockerClient, name: str, subnet: str, label: str) -> Network:
    gateway = str(next(ipaddress.ip_network(subnet).hosts()))
    pool = docker.types.IPAMPool(subnet=subnet, gateway=gateway)
    return client.networks.create(
        name,
        driver="bridge",
        options={"com.docker.network.driver.mtu": str(machine.network_mtu())},
        ipam=docker.types.IPAMConfig(pool_configs=[pool]),
        labels={names.LAB_LABEL: label},
        check_duplicate=True,
    )


def find_network(client: docker.DockerClient, name: str) -> Network | None:
    return next((network for network in client.networks.list(names=[name]) if network.name == name), None)


def subnet_of(network: Network) -> str:
    """The network's first subnet; empty for one that was only half made."""
    configs = (network.attrs.get("IPAM") or {}).get("Config") or [{}]
    return configs[0].get("Subnet", "")


def ensure_network(client: docker.DockerClient, lab: Lab, state: State) -> None:
    """Make the lab's network and note its subnet; one of ours that is half made is made again."""
    network = find_network(client, lab.name)
    if network:
        if (network.attrs.get("Labels") or {}).get(names.LAB_LABEL) != lab.name:
            raise machine.MachineError(
                f"A Docker network {lab.name} is there that the lab did not make. "
                "Remove it, or set STEPLADDER_LAB to another name."
            )
        if subnet_of(network) and subnet_of(network) == (state.subnet or subnet_of(network)):
            state.subnet = subnet_of(network)
            return
        remove_network(client, network)
    taken = taken_subnets(client)
    wanted = ipaddress.ip_network(state.subnet) if state.subnet else None
    if wanted is None or any(wanted.overlaps(other) for other in taken):
        wanted = names.free_subnet(lab.name, taken)
    create_network(client, lab.name, str(wanted), lab.name)
    state.subnet = str(wanted)


def ensure_molecule_network(client: docker.DockerClient) -> None:
    if find_network(client, names.MOLECULE_NETWORK) is None:
        create_network(client, names.MOLECULE_NETWORK, str(names.MOLECULE_SUBNET), names.MOLECULE)


def remove_network(client: docker.DockerClient, network: Network) -> None:
    network.reload()
    for member in list(network.attrs.get("Containers") or {}):
        network.disconnect(member, force=True)
    network.remove()


def find_hosts(client: docker.DockerClient, lab_name: str) -> dict[str, Container]:
    """The lab's containers by host name, stopped ones too."""
    found = client.containers.list(all=True, filters={"label": f"{names.LAB_LABEL}={lab_name}"})
    return {item.labels[names.HOST_LABEL]: item for item in found if names.HOST_LABEL in item.labels}


def create_host(client: docker.DockerClient, lab: Lab, host: str, image: str, address: str, debian: str) -> Container:
    """Create and start one host with its address and the lab's key in the administrator's account."""
    endpoint = client.api.create_endpoint_config(ipv4_address=address, aliases=[host])
    api = client.api
    made = api.create_container(
        image,
        name=names.container_name(lab.name, host),
        hostname=host,
        labels={names.LAB_LABEL: lab.name, names.HOST_LABEL: host, names.DEBIAN_LABEL: debian},
        volumes=[cache.PYTHON_FOLDER],
        networking_config=api.create_networking_config({lab.name: endpoint}),
        host_config=api.create_host_config(
            cap_add=CAPABILITIES,
            security_opt=SECURITY,
            cgroupns="private",
            tmpfs=TMPFS,
            sysctls=KERNEL_SETTINGS,
            network_mode=lab.name,
            binds={cache.PYTHON_VOLUME: {"bind": cache.PYTHON_FOLDER, "mode": "rw"}},
        ),
    )
    container = client.containers.get(made["Id"])
    container.put_archive("/home/admin", authorized_keys(lab.need_key()))
    container.start()
    # Docker's archives take numbers for owners, which only the host itself knows.
    container.exec_run(["chown", "-R", "admin:admin", "/home/admin/.ssh"])
    return container


def authorized_keys(public_key: str) -> bytes:
    """A tar of ~/.ssh with one key."""
    stream = io.BytesIO()
    content = public_key.encode()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        folder = tarfile.TarInfo(".ssh")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
        entry = tarfile.TarInfo(".ssh/authorized_keys")
        entry.size, entry.mode = len(content), 0o600
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def ensure_hosts(
    client: docker.DockerClient, lab: Lab, state: State, hosts: list[str], image: str
) -> tuple[list[str], list[str]]:
    """Make every host of the inventory run.

    Gives the hosts that were made or started, and those that still run an older image (they keep their data).
    """
    existing = find_hosts(client, lab.name)
    state.addresses = names.assign_addresses(ipaddress.ip_network(state.subnet), hosts, state.addresses)
    current = client.images.get(image).id
    started, outdated = [], []
    for host in hosts:
        container = existing.get(host)
        if container is not None and not in_network(container, lab.name, state.addresses[host]):
            rejoin(client, container, lab.name, host, state.addresses[host])
        if container is None:
            create_host(client, lab, host, image, state.addresses[host], state.debian)
            started.append(host)
            continue
        if container.image.id != current:
            outdated.append(host)
        if container.status != "running":
            container.start()
            started.append(host)
    return started, outdated


def in_network(container: Container, network: str, address: str) -> bool:
    """Whether a container is attached to the network that there is now, at its address."""
    endpoint = container.attrs["NetworkSettings"]["Networks"].get(network)
    if not endpoint:
        return False
    wanted = (endpoint.get("IPAMConfig") or {}).get("IPv4Address")
    network_ids = {item.id for item in container.client.networks.list(names=[network]) if item.name == network}
    return wanted == address and endpoint.get("NetworkID") in network_ids


def rejoin(client: docker.DockerClient, container: Container, network: str, host: str, address: str) -> None:
    """Attach a container to a network that was made again."""
    with contextlib.suppress(APIError):  # when it was not attached
        client.networks.get(network).disconnect(container, force=True)
    try:
        client.networks.get(network).connect(container, ipv4_address=address, aliases=[host])
    except APIError as error:
        raise machine.MachineError(
            f"{host} could not join the network {network} ({error.explanation}). Run ./ladder down, then up."
        ) from error


def wait_until_up(client: docker.DockerClient, lab: Lab, host: str, address: str) -> None:
    """Wait until systemd has finished starting and SSH answers.

    Raises MachineError with the failed units and the end of the journal after START_SECONDS.
    """
    container = client.containers.get(names.container_name(lab.name, host))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        state = container.exec_run(["systemctl", "is-system-running"]).output.decode().strip()
        if state in ("running", "degraded") and answers(address, 22):
            return
        time.sleep(0.3)
    raise machine.MachineError(f"{host} did not come up within {START_SECONDS} s.\n{diagnosis(container)}")


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def diagnosis(container: Container, lines: int = 25) -> str:
    """The failed units of a host and the end of their journals; what there is when it does not run."""
    try:
        listed = container.exec_run(["systemctl", "--failed", "--no-legend", "--plain"]).output.decode(errors="replace")
    except APIError as error:
        return f"{container.name} cannot be asked: {error.explanation}"
    units = [line.split()[0] for line in listed.splitlines() if line.split()]
    parts = [f"{container.name}: failed units: {', '.join(units) or 'none'}"]
    for unit in units:
        command = ["journalctl", "--no-pager", "-n", str(lines), "-u", unit]
        parts.append(container.exec_run(command).output.decode(errors="replace"))
    return "\n".join(parts)


def collect_host_keys(client: docker.DockerClient, lab: Lab, addresses: dict[str, str]) -> None:
    """Write the hosts' real keys, asked through Docker and not over the network, to the lab's known_hosts."""
    lines = []
    for host, address in addresses.items():
        container = client.containers.get(names.container_name(lab.name, host))
        keys = container.exec_run(["sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"]).output.decode()
        lines += [
            f"{address} {' '.join(line.split()[:2])}"
            for line in keys.splitlines()
            if line.startswith(("ssh-", "ecdsa-"))
        ]
    write_private(lab.known_hosts, "\n".join(lines) + "\n")


def write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)


def reboot(client: docker.DockerClient, lab: Lab, host: str) -> None:
    """Restart a host as a real reboot would: all processes end, /run is empty afterwards; waits until it is up."""
    container = client.containers.get(names.container_name(lab.name, host))
    container.restart(timeout=30)
    lab.close_connections()
    wait_until_up(client, lab, host, lab.load().addresses[host])


def remove_lab(client: docker.DockerClient, lab_name: str) -> int:
    """Remove the containers, networks and volumes that carry the lab's label, and nothing else; gives how many."""
    filters = {"label": f"{names.LAB_LABEL}={lab_name}"}
    removed = 0
    for container in client.containers.list(all=True, filters=filters):
        try:
            container.remove(force=True, v=True)
        except NotFound:
            continue
        removed += 1
    for network in client.networks.list(filters=filters):
        cache.detach(client, network.name)
        remove_network(client, network)
        removed += 1
    for volume in client.volumes.list(filters=filters):
        volume.remove(force=True)
        removed += 1
    return removed
