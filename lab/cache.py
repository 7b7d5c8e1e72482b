"""What all labs share: a cache of Debian packages and one of Python packages."""

from __future__ import annotations

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from lab import machine
from lab.image import FILES, Recipe, build, current_digest, host_tag
from lab.names import INPUTS_LABEL, LAB_LABEL, SHARED

CACHE_NAME = "stepladder-cache"
APT_VOLUME = "stepladder-apt-cache"
PYTHON_VOLUME = "stepladder-python-cache"
PYTHON_FOLDER = "/var/cache/stepladder"
CACHE_DEBIAN = "13"

# Files that one user's pip or uv stores must be open to the others: the folders hand down an access list (the bytes
# are Linux's posix_acl xattr, version 2: everyone rwx), which a plain umask would not.
OPEN_FOLDERS = """
import os, struct
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF) for tag in (1, 4, 32))
for name in ("", "/pip", "/uv"):
    path = "/var/cache/stepladder" + name
    os.makedirs(path, exist_ok=True)
    os.chmod(path, 0o1777 if not name else 0o777)
    try:
        os.setxattr(path, "system.posix_acl_default", acl)
    except OSError as error:
        print("no access lists here:", error)
"""


def recipe(digest: str) -> Recipe:
    """The cache's image; the digest of the image below it is part of its inputs."""
    base = host_tag(CACHE_DEBIAN)
    dockerfile = (FILES / "cache.Dockerfile").read_text().replace("@base@", base)
    return Recipe("stepladder/cache:latest", digest, dockerfile, {})


def ensure_volume(client: docker.DockerClient, name: str) -> None:
    try:
        client.volumes.get(name)
    except NotFound:
        client.volumes.create(name, labels={LAB_LABEL: SHARED})


def ensure_python_cache(client: docker.DockerClient) -> None:
    """The volume that pip and uv of every host keep their downloads in; usable by every user there."""
    try:
        client.volumes.get(PYTHON_VOLUME)
        return
    except NotFound:
        client.volumes.create(PYTHON_VOLUME, labels={LAB_LABEL: SHARED})
    client.containers.run(
        host_tag(CACHE_DEBIAN),
        ["python3", "-c", OPEN_FOLDERS],
        remove=True,
        labels={LAB_LABEL: SHARED},
        volumes={PYTHON_VOLUME: {"bind": PYTHON_FOLDER, "mode": "rw"}},
    )


def ensure_cache(client: docker.DockerClient, networks: list[str], say=machine.say) -> Container:
    """Make the package cache run and answer in the given networks under its name. The Debian 13 image must be there."""
    wanted = recipe(current_digest(client, host_tag(CACHE_DEBIAN)) or "")
    if current_digest(client, wanted.tag) != wanted.digest():
        say("Building the package cache.")
        build(client, wanted)
    ensure_volume(client, APT_VOLUME)
    ensure_python_cache(client)
    container = current_container(client, wanted, networks[0])
    for name in networks:
        attach(client, container, name)
    return container


def current_container(client: docker.DockerClient, wanted: Recipe, network: str) -> Container:
    """The running cache, made anew (in that network) when it is of an older version of the kit."""
    try:
        container = client.containers.get(CACHE_NAME)
        if container.labels.get(INPUTS_LABEL) == wanted.digest():
            if container.status != "running":
                container.start()
            return container
        container.remove(force=True)
    except NotFound:
        pass
    # Never on Docker's default bridge: joining a network later would exchange the name server under the running cache.
    container = client.containers.create(
        wanted.tag,
        name=CACHE_NAME,
        hostname=CACHE_NAME,
        network=network,
        labels={LAB_LABEL: SHARED, INPUTS_LABEL: wanted.digest()},
        volumes={APT_VOLUME: {"bind": "/var/cache/apt-cacher-ng", "mode": "rw"}},
        restart_policy={"Name": "unless-stopped"},
    )
    container.start()
    return container


def attach(client: docker.DockerClient, container: Container, network: str) -> None:
    """Make the cache reachable in a network under its name."""
    container.reload()
    if network in container.attrs["NetworkSettings"]["Networks"]:
        return
    try:
        client.networks.get(network).connect(container, aliases=[CACHE_NAME])
    except APIError as error:
        raise machine.MachineError(f"The package cache could not join {network}: {error.explanation}") from error


def detach(client: docker.DockerClient, network: str) -> None:
    """Take the cache out of a network that is about to go."""
    try:
        client.networks.get(network).disconnect(CACHE_NAME, force=True)
    except (NotFound, APIError):
        return
