"""The hosts' image: a fresh Debian with systemd, sshd, Python and an administrator, as a new VM would be.

The image carries the hash of everything that it is made from; when that differs, it is made again by itself.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import APIError, BuildError, ImageNotFound

from lab import machine
from lab.names import INPUTS_LABEL, LAB_LABEL, SHARED

CODENAMES = {"12": "bookworm", "13": "trixie"}
FILES = Path(__file__).parent / "image"
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)
# A build hung on a dead mirror must end, one on a slow machine must not.
BOOTSTRAP_SECONDS = 900

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """One image: its tag, the Dockerfile with everything filled in, and the files that go with it."""

    tag: str
    base: str
    dockerfile: str
    files: dict[str, tuple[bytes, int]]

    def digest(self) -> str:
        """Hash of all inputs; twelve hexadecimal digits are enough to tell versions of one image apart."""
        total = hashlib.sha256(f"{self.base}\n{self.dockerfile}".encode())
        for name, (content, mode) in sorted(self.files.items()):
            total.update(f"{name}\0{mode:o}\0".encode() + hashlib.sha256(content).digest())
        return total.hexdigest()[:12]


def host_tag(debian: str) -> str:
    return f"stepladder/host:debian{debian}"


def base_tag(debian: str) -> str:
    return f"stepladder/base:debian{debian}"


def sources(debian: str, mirror: str) -> str:
    """The apt sources of a host (deb822)."""
    codename = CODENAMES[debian]
    security = mirror if mirror.rstrip("/").endswith("-security") else f"{mirror.rstrip('/')}-security"
    keyring = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
    return (
        f"Types: deb\nURIs: {mirror}\nSuites: {codename} {codename}-updates\nComponents: main\n{keyring}\n\n"
        f"Types: deb\nURIs: {security}\nSuites: {codename}-security\nComponents: main\n{keyring}\n"
    )


def mirror_address() -> str:
    return os.environ.get("STEPLADDER_MIRROR", "http://deb.debian.org/debian")


def host_recipe(debian: str) -> Recipe:
    dockerfile = (FILES / "Dockerfile").read_text()
    dockerfile = dockerfile.replace("@base@", base_tag(debian)).replace("@packages@", " ".join(PACKAGES))
    files = {
        str(path.relative_to(FILES)): (path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
        for path in sorted((FILES / "files").rglob("*"))
        if path.is_file()
    }
    files["files/etc/apt/sources.list.d/debian.sources"] = (sources(debian, mirror_address()).encode(), 0o644)
    for number, text in enumerate(machine.machine_certificates(), start=1):
        files[f"files/usr/local/share/ca-certificates/machine-{number:02}.crt"] = (text.encode(), 0o644)
    return Recipe(host_tag(debian), base_tag(debian), dockerfile, files)


def context(recipe: Recipe) -> io.BytesIO:
    """The build's context as a tar file in memory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, (content, mode) in {"Dockerfile": (recipe.dockerfile.encode(), 0o644), **recipe.files}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    stream.seek(0)
    return stream


def current_digest(client: docker.DockerClient, tag: str) -> str | None:
    """The inputs' hash that an image carries; None when it is not there or was not made by the lab."""
    try:
        return client.images.get(tag).labels.get(INPUTS_LABEL)
    except ImageNotFound:
        return None


def build(client: docker.DockerClient, recipe: Recipe) -> None:
    """Build an image; raises MachineError with the tail of the build's output."""
    labels = {LAB_LABEL: SHARED, INPUTS_LABEL: recipe.digest()}
    try:
        client.images.build(
            fileobj=context(recipe), custom_context=True, tag=recipe.tag, labels=labels, rm=True, forcerm=True
        )
    except BuildError as error:
        output = "".join(part.get("stream", "") for part in error.build_log)
        raise machine.MachineError(
            f"The image {recipe.tag} could not be built:\n{machine.tail(output, 20)}\n{error}"
        ) from error


def ensure_host_image(client: docker.DockerClient, debian: str, say: Say = machine.say) -> str:
    """Make the image of a Debian version unless it is there and current; gives its tag."""
    recipe = host_recipe(debian)
    found = current_digest(client, recipe.tag)
    if found == recipe.digest():
        return recipe.tag
    say(f"Building {recipe.tag} ({'an older one is there' if found else 'about a minute, once'}).")
    ensure_base(client, debian, say)
    build(client, recipe)
    return recipe.tag


def ensure_base(client: docker.DockerClient, debian: str, say: Say) -> None:
    """Debian itself: pulled where an image registry answers, else made from Debian's packages."""
    if current_digest(client, base_tag(debian)):
        return
    codename = CODENAMES[debian]
    try:
        pulled = client.images.pull("debian", tag=codename)
    except APIError:
        bootstrap(client, debian, say)
        return
    recipe = Recipe(base_tag(debian), f"debian:{codename}", f"FROM {pulled.id}\n", {})
    build(client, recipe)


def bootstrap(client: docker.DockerClient, debian: str, say: Say) -> None:
    """Make Debian's base from its packages with mmdebstrap and import it as an image."""
    machine.need_program("mmdebstrap", ["mmdebstrap"], "no image registry answers; it makes Debian from its packages")
    say("No image registry answers; making Debian from its packages.")
    codename = CODENAMES[debian]
    with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
        archive = Path(folder) / "base.tar"
        command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", codename, str(archive)]
        done = subprocess.run([*command, mirror_address()], capture_output=True, text=True, timeout=BOOTSTRAP_SECONDS)
        if done.returncode != 0:
            raise machine.MachineError(f"{' '.join(command)} failed:\n{machine.tail(done.stderr, 15)}")
        name, tag = base_tag(debian).split(":")
        labels = [f"LABEL {LAB_LABEL}={SHARED}", f"LABEL {INPUTS_LABEL}=bootstrap"]
        client.api.import_image_from_file(str(archive), repository=name, tag=tag, changes=labels)
