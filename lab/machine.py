"""What the lab needs from this machine: packages, a Docker engine, the network's MTU, extra certificates.

Standard library only: the entry script uses it before there is a virtual environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ENGINE_LOG = Path("/var/log/stepladder-dockerd.log")
ENGINE_PID_FILES = (Path("/var/run/docker.pid"), Path("/var/run/docker/containerd/containerd.pid"))
ENGINE_SOCKET = Path("/var/run/docker.sock")
ENGINE_START_SECONDS = 60
PROC = Path("/proc")


class MachineError(Exception):
    """Something that this machine lacks; the text says what to do about it."""


def say(text: str) -> None:
    """Print one line about a step, at once, so that it stands before the output of what it announces."""
    print(text, flush=True)


def is_root() -> bool:
    return os.geteuid() == 0


def install_packages(packages: list[str], why: str) -> None:
    """Install Debian packages after saying so; without root, raise MachineError with the command to run."""
    command = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if not is_root():
        raise MachineError(f"{why} is missing. Run this, then the same command again:\n  sudo {command}")
    if shutil.which("apt-get") is None:
        raise MachineError(f"{why} is missing, and this is no Debian. Install: {', '.join(packages)}")
    say(f"Installing {', '.join(packages)} ({why}).")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # The lists first: those of a fresh machine may be old or not there at all.
    for step in (["apt-get", "update"], command.split()):
        done = subprocess.run(step, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise MachineError(f"{' '.join(step)} failed:\n{tail(done.stdout + done.stderr, 15)}")


def need_program(program: str, packages: list[str], why: str) -> None:
    """Install packages unless the program is there already (also in the folders that only root has in PATH)."""
    if find_program(program) is None:
        install_packages(packages, why)


def find_program(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def tail(text: str, lines: int) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def default_interface(routes: str) -> str | None:
    """The interface of the default route in the text of /proc/net/route; None without one."""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            return fields[0]
    return None


def network_mtu() -> int:
    """MTU in bytes of the machine's own way out; packets of a larger one would get lost on some networks."""
    interface = default_interface((PROC / "net/route").read_text())
    if interface is None:
        return 1500
    return int(Path(f"/sys/class/net/{interface}/mtu").read_text())


def engine_answers() -> bool:
    docker = find_program("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "version"], capture_output=True, timeout=30).returncode == 0


def ensure_engine() -> None:
    """Make a Docker engine answer: install it, start it, or recover one that was killed.

    Raises MachineError when that fails or needs root.
    """
    if engine_answers():
        return
    need_program("dockerd", ["docker.io"], "the Docker engine")
    need_program("docker", ["docker-cli"], "Docker's command line")
    if engine_answers():
        return
    if not is_root():
        raise MachineError(
            "The Docker engine does not answer for this user. Either run this with sudo, or run\n"
            "  sudo usermod -aG docker $USER   and log in again."
        )
    if Path("/run/systemd/system").exists():
        say("Starting the Docker engine.")
        subprocess.run(["systemctl", "start", "docker.service"], capture_output=True)
    else:
        start_engine_by_hand()
    wait_for_engine()


def start_engine_by_hand() -> None:
    """Start dockerd where no systemd would; files that a killed engine left are removed first."""
    for pid_file in ENGINE_PID_FILES:
        remove_stale_pid_file(pid_file)
    if not any(is_running(pid_file) for pid_file in ENGINE_PID_FILES):
        ENGINE_SOCKET.unlink(missing_ok=True)
    say(f"Starting the Docker engine (no systemd here); its log is {ENGINE_LOG}, its pid in {ENGINE_PID_FILES[0]}.")
    with ENGINE_LOG.open("ab") as log:
        subprocess.Popen(
            [find_program("dockerd") or "dockerd", "--mtu", str(network_mtu()), "--pidfile", str(ENGINE_PID_FILES[0])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def is_running(pid_file: Path) -> bool:
    """Whether the process that a pid file names runs and is an engine's (pids get used again)."""
    if not pid_file.exists():
        return False
    pid = pid_file.read_text().strip()
    command = PROC / pid / "comm"
    return pid.isdigit() and command.exists() and command.read_text().strip() in ("dockerd", "containerd")


def remove_stale_pid_file(pid_file: Path) -> None:
    if pid_file.exists() and not is_running(pid_file):
        pid_file.unlink()


def wait_for_engine() -> None:
    deadline = time.monotonic() + ENGINE_START_SECONDS
    while time.monotonic() < deadline:
        if engine_answers():
            return
        time.sleep(0.5)
    log = tail(ENGINE_LOG.read_text(errors="replace"), 15) if ENGINE_LOG.exists() else "see: journalctl -u docker"
    raise MachineError(f"The Docker engine does not answer {ENGINE_START_SECONDS} s after its start:\n{log}")


CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def certificate_bundle() -> Path:
    return Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")


def extra_certificates(bundle: str, distribution: list[str]) -> list[str]:
    """The certificates (PEM) of a bundle that the distribution does not ship: a company's or a proxy's own."""
    known = {"".join(text.split()) for text in distribution}
    return [text for text in CERTIFICATE.findall(bundle) if "".join(text.split()) not in known]


def machine_certificates() -> list[str]:
    """What hosts must trust beside the distribution's certificates so that TLS works from where this machine is."""
    bundle = certificate_bundle()
    if not bundle.exists():
        return []
    shipped = [path.read_text() for path in Path("/usr/share/ca-certificates").rglob("*.crt")]
    return extra_certificates(bundle.read_text(), shipped)
