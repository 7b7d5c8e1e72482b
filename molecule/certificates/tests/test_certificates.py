"""What the certificates role promises, seen from the host and from a client that verifies."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parents[1]
ROOT = SCENARIO.parents[1]
TLS = "/etc/stepladder/tls"


def converge(check: bool = True, **variables) -> str:
    """Apply the role again with other settings; gives what the run printed."""
    done = subprocess.run(
        ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], SCENARIO / "converge.yml", "-e", json.dumps(variables)],
        cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def changed(output: str) -> int:
    return sum(map(int, re.findall(r"changed=(\d+)", output)))


@pytest.fixture
def restored():
    """Bring the scenario's own settings back after a test with others."""
    yield
    converge()


def fingerprint(host, leaf: str) -> str:
    return host.check_output(f"openssl x509 -in {TLS}/{leaf}/cert.pem -noout -fingerprint -sha256")


def key_hash(host, leaf: str) -> str:
    return host.check_output(f"sha256sum < {TLS}/{leaf}/key.pem")


def text(host, leaf: str) -> str:
    return host.check_output(f"openssl x509 -in {TLS}/{leaf}/cert.pem -noout -text")


def test_leaf_is_trusted_strictly_for_its_names_and_no_other(host):
    verify = f"openssl verify -x509_strict -purpose sslserver -CAfile {TLS}/ca.pem"
    for option in ("-verify_hostname www.example.com", "-verify_ip 198.18.1.1", "-verify_ip 2001:db8::1"):
        assert host.run(f"{verify} {option} {TLS}/web/cert.pem").rc == 0
    assert host.run(f"{verify} -verify_hostname other.example.com {TLS}/web/cert.pem").rc != 0


def test_ca_may_sign_leaves_and_nothing_else(host):
    ca = host.check_output(f"openssl x509 -in {TLS}/ca.pem -noout -text")
    assert re.search(r"Key Usage: critical\s+Certificate Sign, CRL Sign", ca)
    assert "CA:TRUE, pathlen:0" in ca
    leaf = text(host, "web")
    assert "CA:FALSE" in leaf and "Subject Key Identifier" in leaf and "Authority Key Identifier" in leaf


def test_keys_are_readable_by_their_group_and_no_one_else(host):
    web, database = host.file(f"{TLS}/web/key.pem"), host.file(f"{TLS}/database/key.pem")
    assert (web.user, web.group, oct(web.mode)) == ("root", "root", "0o600")
    assert (database.user, database.group, oct(database.mode)) == ("root", "ssl-cert", "0o640")
    assert host.run(f"setpriv --reuid nobody --regid nogroup --clear-groups cat {TLS}/web/key.pem").rc != 0


def test_the_cas_key_never_reaches_the_host(host):
    ca_key = (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ca/ca.key").read_text()
    body = ca_key.splitlines()[1]
    assert host.run(f"grep -rF '{body}' /etc/stepladder").rc != 0


def test_leaf_close_to_its_end_is_renewed_with_the_same_key_and_its_service_reloaded(host, restored):
    before, key = fingerprint(host, "web"), key_hash(host, "web")
    reloads = host.run("cat /var/log/probe").stdout.count("reloaded")
    converge(certificates_renew_days=398)
    assert fingerprint(host, "web") != before
    assert key_hash(host, "web") == key
    assert host.run("cat /var/log/probe").stdout.count("reloaded") == reloads + 1
    before = fingerprint(host, "web")
    assert changed(converge()) == 0
    assert fingerprint(host, "web") == before
    assert host.run("cat /var/log/probe").stdout.count("reloaded") == reloads + 1


def test_new_names_make_a_new_leaf_and_leave_the_other_alone(host, restored):
    database = fingerprint(host, "database")
    leaves = [
        {"name": "web", "names": ["shop.example.com"]},
        {"name": "database", "names": ["db1"], "group": "ssl-cert"},
    ]
    converge(certificates_leaves=leaves)
    assert "DNS:shop.example.com" in text(host, "web") and "www.example.com" not in text(host, "web")
    assert fingerprint(host, "database") == database


def test_another_cas_leaf_is_replaced(host, restored, tmp_path):
    before = fingerprint(host, "web")
    converge(certificates_ca_dir=str(tmp_path / "ca"))
    assert fingerprint(host, "web") != before
    assert host.run(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/web/cert.pem").rc == 0


def test_lost_key_and_wrong_mode_are_mended(host):
    host.check_output(f"rm {TLS}/web/key.pem && chmod 644 {TLS}/database/key.pem")
    converge()
    assert oct(host.file(f"{TLS}/web/key.pem").mode) == "0o600"
    assert oct(host.file(f"{TLS}/database/key.pem").mode) == "0o640"
    own = host.check_output(f"openssl pkey -in {TLS}/web/key.pem -pubout")
    assert own == host.check_output(f"openssl x509 -in {TLS}/web/cert.pem -noout -pubkey")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"certificates_leaves": [{"name": "web", "names": ["not a name"]}]}, "neither a DNS name nor an address"),
        ({"certificates_leaves": [{"name": "web", "names": []}]}, "web needs names"),
        ({"certificates_leaves": [{"name": "web", "names": ["a"], "owner": "x"}]}, "unknown key owner"),
    ],
)
def test_wrong_leaves_are_refused_in_one_sentence(host, variables, sentence):
    before = fingerprint(host, "web")
    output = converge(check=False, **variables)
    assert sentence in re.sub(r"\s+", " ", output)
    assert changed(output) == 0 and fingerprint(host, "web") == before


def test_half_a_ca_is_refused_and_kept(tmp_path):
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/ca.key").write_text("precious")
    output = converge(check=False, certificates_ca_dir=str(tmp_path / "ca"))
    assert "holds only one of ca.key and ca.pem" in re.sub(r"\s+", " ", output)
    assert (tmp_path / "ca/ca.key").read_text() == "precious"
