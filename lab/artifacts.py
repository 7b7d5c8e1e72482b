"""Programs that tests need and Debian does not package, built in a container so that the machine needs no toolchain.

Each lies in its own folder under .cache/artifacts with the checksums of its files; what does not match is built again.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import ContainerError

from lab import cache, image, names
from lab.machine import MachineError, tail
from lab.model import ROOT

ARTIFACTS = ROOT / ".cache/artifacts"
BUILDER_DEBIAN = "13"
# What decides where Go's modules come from; a machine behind a proxy of its own says it here.
GO_VARIABLES = ("GOPROXY", "GONOSUMDB", "GOSUMDB", "GOPRIVATE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
GO_PROGRAMS = "/root/go/bin"


@dataclass(frozen=True)
class GoArtifact:
    """Programs that Go builds from one version of a module: packages of it, or a main package given here that imports some."""

    title: str
    module: str
    version: str
    packages: tuple[str, ...] = ()
    main: str = ""

    def programs(self, name: str) -> tuple[str, ...]:
        """The files that an artifact of this name has."""
        return (name,) if self.main else tuple(package.rsplit("/", 1)[-1] for package in self.packages)

    @property
    def edition(self) -> str:
        """What a built artifact is compared by: another main is another program."""
        return f"{self.version} {hashlib.sha256(self.main.encode()).hexdigest()[:12]}" if self.main else self.version

    def command(self, name: str) -> str:
        """The shell command that builds them into GO_PROGRAMS; Go checks the sources against its checksum database."""
        if not self.main:
            return " && ".join(f"go install {self.module}/{package}@{self.version}" for package in self.packages)
        steps = (
            f"mkdir -p /build {GO_PROGRAMS} && cd /build",
            f"printf %s {shlex.quote(self.main)} > main.go",
            f"go mod init {name} && go mod edit -require={self.module}@{self.version}",
            f"go build -mod=mod -o {GO_PROGRAMS}/{name} .",
        )
        return " && ".join(steps)


# By the names of their folders.
GO_ARTIFACTS = {
    "pebble": GoArtifact(
        "Pebble, Let's Encrypt's test server, and its DNS mock",
        "github.com/letsencrypt/pebble/v2",
        "v2.10.1",
        ("cmd/pebble", "cmd/pebble-challtestsrv"),
    ),
    # rclone as a whole is some seventy kinds of storage, and takes many times as long to build.
    "rclone": GoArtifact(
        "rclone's S3-compatible server",
        "github.com/rclone/rclone",
        "v1.73.0",
        main="""package main

import (
\t_ "github.com/rclone/rclone/backend/local"
\t"github.com/rclone/rclone/cmd"
\t_ "github.com/rclone/rclone/cmd/serve/s3"
)

func main() { cmd.Main() }
""",
    ),
}


def checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sums(folder: Path) -> str:
    """The folder's files with their checksums, as sha256sum prints them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in ("SHA256SUMS", "VERSION"))
    return "".join(f"{checksum(path)}  {path.name}\n" for path in files)


def is_complete(folder: Path, version: str, programs: tuple[str, ...]) -> bool:
    """Whether a folder holds this version's programs, unchanged since they were built."""
    if not all((folder / name).is_file() for name in (*programs, "SHA256SUMS", "VERSION")):
        return False
    return (folder / "VERSION").read_text().strip() == version and (folder / "SHA256SUMS").read_text() == sums(folder)


def builder_recipe(digest: str) -> image.Recipe:
    """An image with Go from Debian, on top of the hosts' image of the given digest."""
    dockerfile = (
        f"FROM {image.host_tag(BUILDER_DEBIAN)}\n"
        "RUN DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends golang-go && apt-get clean\n"
    )
    return image.Recipe(f"stepladder/builder:debian{BUILDER_DEBIAN}", digest, dockerfile, {})


def ensure_builder(client: docker.DockerClient) -> str:
    """Make the builder's image unless it is there and current; gives its tag."""
    base = image.ensure_host_image(client, BUILDER_DEBIAN)
    wanted = builder_recipe(image.current_digest(client, base) or "")
    if image.current_digest(client, wanted.tag) != wanted.digest():
        image.build(client, wanted)
    return wanted.tag


def build(name: str, client: docker.DockerClient | None = None) -> Path:
    """Build one of GO_ARTIFACTS unless it is there; gives the folder that has its programs.

    Raises MachineError with the end of the build's output.
    """
    folder, artifact = ARTIFACTS / name, GO_ARTIFACTS[name]
    if is_complete(folder, artifact.edition, artifact.programs(name)):
        return folder
    archive = run_builder(client or docker.from_env(timeout=900), artifact.command(name), GO_PROGRAMS)
    unpack(archive, folder, artifact.edition)
    return folder


def run_builder(client: docker.DockerClient, command: str, result: str) -> bytes:
    """Run a shell command in a builder container; gives a tar of the folder with what it made."""
    environment = {name: os.environ[name] for name in GO_VARIABLES if name in os.environ}
    environment |= {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOPATH": "/root/go", "HOME": "/root"}
    container = client.containers.create(
        ensure_builder(client),
        ["sh", "-c", command],
        environment=environment,
        labels={names.LAB_LABEL: names.SHARED},
        network=names.MOLECULE_NETWORK,
        volumes={cache.PYTHON_VOLUME: {"bind": cache.PYTHON_FOLDER, "mode": "rw"}},
    )
    try:
        container.start()
        code = container.wait(timeout=900)["StatusCode"]
        if code != 0:
            raise MachineError(f"A build failed: {command}\n{tail(container.logs().decode(errors='replace'), 20)}")
        chunks, _ = container.get_archive(result)
        return b"".join(chunks)
    except ContainerError as error:
        raise MachineError(f"A builder container did not start: {error}") from error
    finally:
        container.remove(force=True)


def unpack(archive: bytes, folder: Path, version: str) -> None:
    """Put a tar's files, without their folders, into a fresh folder, and note version and checksums."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isfile() else None
            if content:
                path = fresh / Path(entry.name).name
                path.write_bytes(content.read())
                path.chmod(0o755)
    (fresh / "VERSION").write_text(version + "\n")
    (fresh / "SHA256SUMS").write_text(sums(fresh))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
