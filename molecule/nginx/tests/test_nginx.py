"""What the role promises, asked of running sites: who gets what, who is refused, and what a change disturbs."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra

SCENARIO = Path(__file__).resolve().parents[1]
SHOP, BLOG = "shop.example.com", "blog.example.com"
CA, PEBBLE_ROOT = "/etc/stepladder/tls/ca.pem", "/run/pebble-root.pem"
HASHED = "/static/app.0123456789ab.css"
# curl's own words for a connection that was closed without a word, a handshake that failed, and a stranger's signature.
NO_HANDSHAKE, NOT_TRUSTED = 35, 60
CLOSED = (52, 56)
# Actions that make no remote call.
LOCAL = {"assert", "fail", "debug", "include_tasks", "import_tasks", "validate_argument_spec", "gather_facts"}


@pytest.fixture
def host(host):
    """The same host without Ansible in between: a command takes a tenth of the time."""
    return testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))


@dataclass
class Answer:
    """What curl got: its exit code, and status, version, headers (small letters) and body of the answer."""

    code: int
    status: int = 0
    version: str = ""
    headers: dict | None = None
    text: str = ""

    @property
    def told(self):
        """The headers that the application was given."""
        return json.loads(self.text)["headers"]


def ask(host, path="/", *options, name=SHOP, scheme="https", ca=CA, address="127.0.0.1"):
    """One request to the site of that name, with the certificate verified."""
    resolve = [word for port in (80, 443) for word in ("--resolve", f"{name}:{port}:{address}")]
    words = [
        "curl",
        "-sS",
        "--path-as-is",
        "-m",
        "20",
        "-D",
        "/run/head",
        "-o",
        "/run/body",
        "-w",
        "%{http_code} %{http_version}",
    ]
    words += [*resolve, "--cacert", ca, *options, f"{scheme}://{name}{path}"]
    host.run("rm -f /run/head /run/body")
    done = host.run(" ".join(["%s"] * len(words)), *words)
    if done.rc != 0:
        return Answer(done.rc)
    status, version = done.stdout.split()
    lines = host.run("cat /run/head").stdout.splitlines()
    headers = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:] for line in lines if ": " in line)
    body = host.run("cat /run/body").stdout_bytes.decode("utf-8", "replace")
    return Answer(0, int(status), version, {key.lower(): value for key, value in headers.items()}, body)


def test_http_goes_to_https_with_path_and_query(host):
    for name in (SHOP, f"www.{SHOP}", BLOG):
        answer = ask(host, "/a%20b?c=d", scheme="http", name=name)
        assert (answer.status, answer.headers["location"]) == (301, f"https://{name}/a%20b?c=d")


def test_certificate_is_verified_against_the_ca_and_no_other(host):
    assert ask(host).status == 200
    assert ask(host, ca="/etc/ssl/certs/ca-certificates.crt").code == NOT_TRUSTED


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_unknown_name_gets_nothing_of_a_site(host, version):
    assert ask(host, name="other.example.com", scheme="http").code in CLOSED
    assert ask(host, "/", version, "-k", name="other.example.com").code == NO_HANDSHAKE
    assert ask(host, "/", version, "-k", name="127.0.0.1").code == NO_HANDSHAKE
    misdirected = ask(host, HASHED, version, "-H", "Host: other.example.com")
    assert misdirected.status == 421
    assert "color" not in misdirected.text
