"""What a killed engine, an interrupted command or a person leaves behind is mended by ./ladder up, not tripped over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from lab import hosts, image, names
from lab.model import Lab, State


@pytest.fixture(scope="module")
def client() -> docker.DockerClient:
    return docker.from_env()


@pytest.fixture
def other(client: docker.DockerClient, lab, tmp_path: Path) -> Iterator[Lab]:
    """A lab of which only what a test makes is there; it needs the image that the running lab has made."""
    made = Lab(f"{lab.name}-other", tmp_path)
    yield made
    hosts.remove_lab(client, made.name)


def test_stopped_hosts_and_a_lost_network_are_recovered_with_their_data(lab, client):
    before = lab.hosts
    for host in before:
        lab.ssh(host, "echo kept | sudo tee /var/lib/kept >/dev/null")
    network = client.networks.get(lab.name)
    client.containers.get(f"{lab.name}-web1").stop(timeout=10)
    hosts.remove_network(client, network)
    lab.ladder("up", "1", "--debian", lab.debian)
    assert lab.hosts == before
    assert [lab.ssh(host, "cat /var/lib/kept").stdout.strip() for host in before] == ["kept"] * len(before)
    lab.wait_for("/readyz")


def test_network_that_was_only_half_made_is_made_again(client, other):
    # What an interrupted call leaves: the name and the label, and not the lab's subnet.
    client.networks.create(other.name, labels={names.LAB_LABEL: other.name})
    wanted = str(names.free_subnet(other.name, hosts.taken_subnets(client)))
    hosts.ensure_network(client, other, State(subnet=wanted))
    assert hosts.subnet_of(client.networks.get(other.name)) == wanted


def test_network_of_somebody_else_is_refused_and_stays(client, other):
    theirs = client.networks.create(other.name)
    try:
        with pytest.raises(Exception, match="that the lab did not make"):
            hosts.ensure_network(client, other, State())
        assert client.networks.get(other.name).id == theirs.id
    finally:
        theirs.remove()


def test_down_removes_what_carries_the_labs_label_and_nothing_else(client, lab, other):
    tag = image.host_tag(lab.debian)
    ours = client.containers.create(tag, "true", labels={names.LAB_LABEL: other.name, names.HOST_LABEL: "x"})
    theirs = client.containers.create(tag, "true")
    try:
        assert hosts.remove_lab(client, other.name) == 1
        left = {container.id for container in client.containers.list(all=True)}
        assert ours.id not in left
        assert theirs.id in left
        assert set(hosts.find_hosts(client, lab.name)) == set(lab.hosts)
    finally:
        theirs.remove(force=True)


def test_a_stage_that_does_not_exist_is_refused_with_those_that_do(lab):
    done = lab.ladder("up", "9", check=False)
    assert done.returncode != 0
    assert "Stage 9 does not exist yet. Stages that do: 1" in done.stdout + done.stderr


def test_another_debian_than_the_labs_is_refused_because_its_hosts_have_data(lab):
    wanted = "12" if lab.debian == "13" else "13"
    done = lab.ladder("up", "1", "--debian", wanted, check=False)
    assert done.returncode != 0
    assert f"runs Debian {lab.debian}, not {wanted}" in " ".join((done.stdout + done.stderr).split())


def test_a_host_that_the_lab_does_not_have_is_named_with_those_it_has(lab):
    done = lab.ssh("web9", "true", check=False)
    assert done.returncode != 0
    assert "has no host web9. Hosts: web1, db1" in " ".join((done.stdout + done.stderr).split())


def test_exit_code_and_output_of_a_hosts_command_come_through(lab):
    done = lab.ssh("web1", "echo said; exit 7", check=False)
    assert (done.returncode, done.stdout.strip()) == (7, "said")
