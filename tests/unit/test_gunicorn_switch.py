"""gunicorn_switch: what decides about an instance, without systemd."""

import http.server
import socket
import socketserver
import tempfile
import threading
from pathlib import Path

import pytest

from kit import ROOT, load_module, load_shared_utilities

load_shared_utilities()
switch = load_module(ROOT / "roles/gunicorn/library/gunicorn_switch.py")


@pytest.fixture
def site(tmp_path):
    for folder in ("units/multi-user.target.wants", "etc/gunicorn-x", "state/gunicorn-x"):
        (tmp_path / folder).mkdir(parents=True)
    # The kernel takes 107 bytes for a socket's path; a test's own folder may be longer.
    with tempfile.TemporaryDirectory(dir="/tmp") as run:
        (Path(run) / "gunicorn-x").mkdir()
        yield switch.Site("x", *(str(tmp_path / folder) for folder in ("units", "etc", "state")), run)


def wanted(**changes):
    values = {"release": "r1", "unit": "unit of @INSTANCE@", "config": "config", "environment_files": []}
    return {**values, **changes}


def test_instance_changes_with_the_unit_the_configuration_and_the_environment_and_nothing_else(site, tmp_path):
    environment = tmp_path / "env"
    environment.write_text("A=1\n")
    names = [
        switch.Switch(site, wanted(**changes)).instance
        for changes in ({}, {"unit": "other"}, {"config": "other"}, {"environment_files": [str(environment)]})
    ]
    environment.write_text("A=2\n")
    names.append(switch.Switch(site, wanted(environment_files=[str(environment)])).instance)
    assert len(set(names)) == 5
    assert switch.Switch(site, wanted()).instance == names[0]
    assert all(name.startswith("r1-") for name in names)


def test_link_is_replaced_never_absent(site):
    first, second = (switch.Switch(site, wanted(release=release)) for release in ("r1", "r2"))
    first.flip()
    assert site.linked() == first.instance
    Path(site.run, ".live.sock.new").symlink_to("left by a killed run")
    second.flip()
    assert site.linked() == second.instance
    assert [path.name for path in Path(site.run).iterdir()] == ["live.sock"]


def test_secrets_are_masked_in_log_lines(tmp_path):
    environment = tmp_path / "env"
    environment.write_text("SECRET_KEY='s3cr3t'\nDJANGO_SETTINGS_MODULE=shop.settings\nAPI_TOKEN=abcdef\n")
    lines = "s3cr3t abcdef shop.settings postgres://shop:hunter2@db/shop"
    assert (
        switch.masked(lines, [str(environment), str(tmp_path / "gone")])
        == "******** ******** shop.settings postgres://shop:********@db/shop"
    )


def test_connections_that_wait_at_a_socket_are_counted(tmp_path):
    path = str(tmp_path / "web.sock")
    with (
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        server.bind(path)
        server.listen()
        assert switch.queue_length(path) in (0, None)
        one.connect(path)
        two.connect(path)
        assert switch.queue_length(path) in (2, None)
        server.accept()[0].close()
        assert switch.queue_length(path) in (1, None)


def test_missing_release_and_root_are_refused(site):
    values = {"required_paths": ["/not/there"], "user": "root"}
    assert "/not/there is not there" in switch.Switch(site, wanted(**values)).missing()
    assert "as root" in switch.Switch(site, wanted(required_paths=[], user="root")).missing()
    assert "does not exist" in switch.Switch(site, wanted(required_paths=[], user="no-such-user")).missing()


def test_difference_is_empty_of_what_stays(site):
    one = switch.Switch(site, wanted())
    for path, text in one.files().items():
        switch.write(path, text)
    two = switch.Switch(site, wanted(config="changed"))
    changes = {change["after_header"].rpartition(".")[2]: change for change in two.difference(one.instance)}
    assert (changes["py"]["before"], changes["py"]["after"]) == ("config", "changed")
    assert changes["service"]["before"] == f"unit of {one.instance}"


def test_page_that_the_project_does_not_have_is_said_to_be_missing(site):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def address_string(self):
            return "a unix socket"

    health = {"path": "/healthz", "headers": {}, "status": 200, "contains": ""}
    one = switch.Switch(site, wanted(health=health, workers=0))
    Path(site.folder(one.instance)).mkdir(parents=True)
    with socketserver.UnixStreamServer(site.socket(one.instance), Answer) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert one.judge(5) == (
            "/healthz answered 404: the project has no such page. Name one that it has as the health path"
        )
