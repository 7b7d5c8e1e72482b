"""The roles etcd and patroni: what their modules make of what they read, and what Patroni is never told."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from test_templates import samples

from kit import ROOT, load_module
from rendered import Role

ODD = 'it\'s: "100%" $ecret\\n`id`ü'


def load(role: str, name: str) -> ModuleType:
    return load_module(ROOT / f"roles/{role}/module_utils/{name}.py", f"ansible.module_utils.{name}")


api, keys = load("etcd", "etcd_api"), load("patroni", "patroni_etcd")


def varint(number: int) -> bytes:
    found = b""
    while True:
        number, low = number >> 7, number & 0x7F
        found += bytes([low | (0x80 if number else 0)])
        if not number:
            return found


def frame(kind: int, data: bytes) -> bytes:
    """A record as etcd's log has it: length with padding to eight bytes, then type, checksum and data."""
    record = b"\x08" + varint(kind) + b"\x10" + varint(123456) + (b"\x1a" + varint(len(data)) + data if data else b"")
    padding = -len(record) % 8
    return struct.pack("<Q", len(record) | ((0x80 | padding) << 56 if padding else 0)) + record + b"\0" * padding


def test_a_members_log_says_whose_it_is(tmp_path: Path) -> None:
    assert api.wal_identity(str(tmp_path)) == ("", "")
    folder = tmp_path / "member/wal"
    folder.mkdir(parents=True)
    metadata = b"\x08" + varint(0x8E9E05C52164694D) + b"\x10" + varint(0xCDF818194E3A8C32)
    (folder / "0000000000000000-0000000000000000.wal").write_bytes(frame(4, b"") + frame(1, metadata) + b"\0" * 100)
    assert api.wal_identity(str(tmp_path)) == ("8e9e05c52164694d", "cdf818194e3a8c32")
    (folder / "0000000000000000-0000000000000000.wal").write_bytes(b"\xff" * 64)
    assert api.wal_identity(str(tmp_path)) == ("", "")


def member(**data: object) -> str:
    return json.dumps({"conn_url": "postgres://db.test:5432/postgres", "state": "running", "timeline": 2, **data})


def test_the_cluster_is_read_from_patronis_keys() -> None:
    found = keys.cluster(
        {
            "initialize": "7", "leader": "db1", "config": '{"synchronous_mode": true, "pause": true}', "status": '{"optime": 100}',
            "sync": '{"leader": "db1", "sync_standby": "db2"}', "members/db1": member(xlog_location=100, pending_restart=True),
            "members/db2": member(xlog_location=60, replication_state="streaming"),
            "members/db3": member(xlog_location=120, state="starting"), "members/db4": member(version="3.0.2"),
        }
    )  # fmt: skip
    assert [(item["name"], item["role"], item["state"], item["lag_bytes"]) for item in found["members"]] == [
        ("db1", "leader", "running", 0), ("db2", "synchronous", "streaming", 40), ("db3", "replica", "starting", 0),
        ("db4", "replica", "streaming", None),
    ]  # fmt: skip
    assert (found["paused"], found["synchronous"], found["pending_restart"]) == (True, ["db2"], ["db1"])
    assert found["members"][0]["host"] == "db.test"
    # What a former leader had agreed on says nothing about the present one.
    assert keys.cluster({"leader": "db2", "sync": '{"leader": "db1", "sync_standby": "db2"}'})["synchronous"] == []
    assert keys.cluster({})["members"] == []


@pytest.mark.parametrize(
    ("found", "patch"),
    [
        (
            {
                "ttl": 20,
                "postgresql": {"use_slots": True, "parameters": {"max_connections": "40", "x": 1}},
                "pause": True,
            },
            {},
        ),
        ({"ttl": 30, "postgresql": {"use_slots": "on", "parameters": {"max_connections": 40}}}, {"ttl": 20}),
        ({"ttl": 20, "postgresql": {"use_slots": True}}, {"postgresql": {"parameters": {"max_connections": 40}}}),
        ({"ttl": 20}, {"postgresql": {"use_slots": True, "parameters": {"max_connections": 40}}}),
    ],
)
def test_only_what_differs_is_changed(found: dict, patch: dict) -> None:
    assert (
        keys.differences({"ttl": 20, "postgresql": {"use_slots": True, "parameters": {"max_connections": 40}}}, found)
        == patch
    )


def test_patroni_can_never_make_a_database_or_rewrite_the_access_rules() -> None:
    for sample in samples("patroni"):
        [text] = [
            file.text for file in Role(ROOT / "roles/patroni", sample).files() if file.dest.endswith("config.yml")
        ]
        config = yaml.safe_load(text)
        assert "bootstrap" not in config
        assert not {"pg_hba", "pg_ident"} & set(config["postgresql"])
        assert config["restapi"]["verify_client"] == "optional"
        assert config["restapi"]["allowlist"]
        assert config["ctl"]["insecure"] is False
    assert config["postgresql"]["authentication"]["replication"]["password"] == ODD
    assert config["postgresql"]["listen"] == "192.0.2.1,127.0.0.1:5433"
    assert config["watchdog"]["mode"] == "off"


def test_a_member_of_etcd_begins_nothing_new_and_takes_no_plain_connection() -> None:
    [text] = [
        file.text for file in Role(ROOT / "roles/etcd", samples("etcd")[1]).files() if file.dest.endswith("etcd.env")
    ]
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert lines["ETCD_INITIAL_CLUSTER_STATE"] == '"existing"'
    assert "http://" not in text
    assert lines["ETCD_LISTEN_CLIENT_URLS"] == '"https://192.0.2.1:2379,https://[2001:db8::1]:2379"'
    assert lines["ETCD_CLIENT_CERT_AUTH"] == lines["ETCD_PEER_CLIENT_CERT_AUTH"] == '"true"'


def test_postgres_leaves_out_what_patroni_decides() -> None:
    sample = {**samples("postgres")[1], "postgres_manager": "patroni", "postgres_settings": {"work_mem": "8MB"}}
    files = {file.dest.rsplit("/", 1)[1]: file.text for file in Role(ROOT / "roles/postgres", sample).files()}
    plain = Role(ROOT / "roles/postgres", {**sample, "postgres_manager": "plain"})
    names = set(Role(ROOT / "roles/postgres", sample).value("_postgres_not_ours"))

    def given(text: str) -> set[str]:
        return {line.split(" = ")[0] for line in text.splitlines() if " = " in line and not line.startswith("#")}

    there = given(next(file.text for file in plain.files() if file.dest.endswith("10-stepladder.conf")))
    assert given(files["10-stepladder.conf"]) == there - names
    assert {"primary_conninfo", "synchronous_standby_names", "max_connections", "wal_keep_size"} <= there & names
    assert "local replication replication scram-sha-256" in files["pg_hba.conf"]
    assert "local replication" not in next(file.text for file in plain.files() if file.dest.endswith("pg_hba.conf"))
    # Every parameter that the role patroni can set is one that this role then leaves alone.
    owned = yaml.safe_load((ROOT / "roles/patroni/tasks/preflight.yml").read_text())[0]["vars"]["_patroni_owned"]
    assert set(owned) <= names
