"""The role postgres: how values are written, how another server is asked, and what its modules make of the answers."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_templates import samples

from kit import ROOT, load_module
from rendered import Role

ROLE = ROOT / "roles/postgres"
ODD = 'it\'s: "100%" $ecret\\ü'


def load(name: str) -> ModuleType:
    return load_module(ROLE / f"module_utils/{name}.py", f"ansible.module_utils.{name}")


scram, server, wire = load("postgres_scram"), load("postgres_server"), load("postgres_wire")
replication = load("postgres_replication")


def library(name: str) -> ModuleType:
    return load_module(ROLE / f"library/{name}.py")


def filters() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("postgres_filters", ROLE / "filter_plugins/postgres.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.FilterModule().filters())


def configuration(number: int, ending: str) -> str:
    [text] = [file.text for file in Role(ROLE, samples("postgres")[number]).files() if file.dest.endswith(ending)]
    return str(text)


def test_connection_strings_and_password_files_are_quoted_as_libpq_reads_them() -> None:
    assert filters()["postgres_conninfo"]({"host": "a,b", "port": 5432}) == "host=a,b port=5432"
    assert filters()["postgres_conninfo"]({"sslrootcert": "/a b'\\"}) == "sslrootcert='/a b\\'\\\\'"
    assert filters()["postgres_passfile"]("replication", "a:b\\c") == "*:*:*:replication:a\\:b\\\\c\n"


def test_scram_proves_the_password_to_the_server_and_the_server_to_the_client() -> None:
    """RFC 7677's own example, with its nonces; its user name is not sent, for PostgreSQL takes that of the startup."""
    client = wire.Scram("pencil", "rOprNGfwEbeRWgbNEkqO")
    client.bare = "n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert client.final(challenge).endswith(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client.prove(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    with pytest.raises(wire.Unreachable, match="does not know the password"):
        client.prove(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    with pytest.raises(wire.Unreachable, match="another nonce"):
        wire.Scram("pencil").final(challenge)


def test_answers_of_the_server_are_read() -> None:
    body = struct.pack("!h", 2) + struct.pack("!i", 2) + b"ab" + struct.pack("!i", -1)
    assert wire.row(body) == ["ab", None]
    assert wire.error_words(b"SFATAL\0C28P01\0Mno such password\0\0") == "no such password"


def test_a_server_that_offers_no_tls_is_not_talked_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if not child:
            accepted, _ = listener.accept()
            accepted.recv(8)
            accepted.sendall(b"N")
            os._exit(0)
        with pytest.raises(wire.Unreachable, match="it offers no TLS"):
            wire.Connection("127.0.0.1", listener.getsockname()[1], "a", "b", None)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("files", "running", "recovers", "role"),
    [
        ([], False, False, "none"),
        (["PG_VERSION"], False, False, "primary"),
        (["PG_VERSION", "standby.signal"], False, False, "replica"),
        (["PG_VERSION", "recovery.signal"], False, False, "restoring"),
        (["PG_VERSION", "standby.signal"], True, True, "replica"),
        (["PG_VERSION", "standby.signal"], True, False, "primary"),
        (["PG_VERSION", "recovery.signal"], True, True, "restoring"),
    ],
)
def test_what_an_instance_is(tmp_path: Path, files: list[str], running: bool, recovers: bool, role: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert replication.role_of(str(tmp_path), running, recovers) == role


def test_this_host_is_known_by_any_of_its_names() -> None:
    assert replication.is_this_host("127.0.0.1")
    assert replication.is_this_host("localhost")
    assert not replication.is_this_host("192.0.2.1")
    assert not replication.is_this_host("no.such.name.invalid")


def test_hosts_of_a_connection_string() -> None:
    assert replication.hosts_of("port=1 host=a,b user=c") == ["a", "b"]
    assert replication.hosts_of("host='a b'") == ["a b"]
    assert replication.hosts_of("hostaddr=1.2.3.4") == []


def test_what_the_primary_had_is_read_from_the_control_file() -> None:
    words = {"max_connections setting": "120", "max_locks_per_xact setting": "64", "max_prepared_xacts setting": "0"}
    found = server.primary_settings(words)
    assert found == {"max_connections": 120, "max_locks_per_transaction": 64, "max_prepared_transactions": 0}


def test_a_raise_asks_the_attached_members_and_takes_silence_for_no(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "10.0.0.2": {"reached": True, "settings": {"max_connections": 40}},
        "10.0.0.3": {"reached": False, "words": "gone"},
    }
    monkeypatch.setattr(replication, "there", lambda wanted, host, **words: answers[host])
    here = {
        "settings": {"max_connections": 40},
        "senders": [{"name": "db2", "address": "10.0.0.2"}, {"name": "x", "address": "?"}],
    }
    wanted = {"slots": ["db2", "db3"], "settings": {"max_connections": "60"}}
    assert replication.slower(wanted, here) == [
        {"name": "db2", "setting": "max_connections", "wanted": 60, "found": 40}
    ]
    here["senders"] = [{"name": "db3", "address": "10.0.0.3"}]
    assert replication.slower(wanted, here)[0]["found"] == "gone"
    assert replication.slower({**wanted, "settings": {"max_connections": 40}}, here) == []


def test_a_copy_is_never_put_over_files(tmp_path: Path) -> None:
    clone = library("postgres_clone")
    user = type("User", (), {"pw_uid": os.getuid(), "pw_gid": os.getgid()})
    target, data = tmp_path / "main.stepladder-clone", tmp_path / "main"
    target.mkdir()
    data.mkdir()
    (data / "somebodys").touch()
    with pytest.raises(server.Refused, match="cannot take the name"):
        clone.settle(str(target), str(data), user, {})
    (data / "somebodys").unlink()
    clone.settle(str(target), str(data), user, {"postgresql.conf": "port = 1\n"})
    assert sorted(path.name for path in data.iterdir()) == ["postgresql.conf", "standby.signal"]


def test_an_instance_without_members_gets_no_word_of_them() -> None:
    text = configuration(0, "10-stepladder.conf")
    assert not re.search(r"^(primary_conninfo|wal_keep_size|synchronous\w+|# --- replication)", text, re.MULTILINE)
    # A slot may be left behind by the last replica, or be somebody else's.
    assert re.search(r"^max_slot_wal_keep_size = '\d+MB'", text, re.MULTILINE)
    assert "replication" not in configuration(0, "pg_hba.conf")
    assert not [file for file in Role(ROLE, samples("postgres")[0]).files() if file.dest.endswith("replication.pgpass")]


# From PostgreSQL's documentation: what only a start can change (pg_settings.context is postmaster), of what the role may write.
NEEDS_RESTART = re.compile(
    r"^(archive_mode|autovacuum_max_workers|cluster_name|hot_standby|huge_pages|listen_addresses|max_\w*(?:connections|files|locks)\w*"
    r"|max_prepared_transactions|max_replication_slots|max_wal_senders|max_worker_processes|port|shared_\w+|superuser_reserved\w*"
    r"|track_activity_query_size|track_commit_timestamp|unix_socket_\w+|wal_buffers|wal_level|wal_log_hints) = ",
    re.MULTILINE,
)


def test_members_that_come_and_go_restart_nobody() -> None:
    # Also a line that goes away makes PostgreSQL ask for a restart, be its value the default or not.
    alone, member = (set(NEEDS_RESTART.findall(configuration(number, "10-stepladder.conf"))) for number in (0, 1))
    written_by_users = {name for number in (0, 1) for name in samples("postgres")[number].get("postgres_settings", {})}
    assert alone - written_by_users == member - written_by_users
    assert {"max_connections", "max_locks_per_transaction", "shared_buffers"} <= alone


def test_how_many_replicas_a_commit_waits_for_may_be_given_as_text() -> None:
    # As -e postgres_synchronous_replicas=1 does.
    given = {**samples("postgres")[1], "postgres_synchronous_replicas": "1"}
    [file] = [file for file in Role(ROLE, given).files() if file.dest.endswith("10-stepladder.conf")]
    assert "synchronous_standby_names = 'ANY 1 (" in file.text


def test_a_member_waits_for_the_others_and_has_at_least_what_its_primary_has() -> None:
    text = configuration(1, "10-stepladder.conf")
    assert 'synchronous_standby_names = \'ANY 1 ("db9", "db1", "db3", "db7", "db4")\'' in text
    assert "max_connections = 500  # as the primary has, instead of 300" in text
    assert "wal_keep_size = '16384MB'" in text
    assert "max_slot_wal_keep_size = '65536MB'" in text
    assert "host=db1.example.com,db2.example.com" in text
    assert "target_session_attrs=read-write" in text
    assert "$ecret" not in text
    rules = [line.split() for line in configuration(1, "pg_hba.conf").splitlines() if " replication " in line]
    assert {(rule[0], rule[1], rule[3], rule[4]) for rule in rules} == {
        ("hostssl", base, network, "scram-sha-256")
        for base in ("replication", "postgres") for network in ("192.0.2.2/32", "2001:db8::2/128")
    }  # fmt: skip
    assert configuration(1, "replication.pgpass") == '*:*:*:replication:it\'s\\: "100%" $ecret\\\\`id`ü\n'


# --- the gate before each start as a primary


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    number = next(n for n, sample in enumerate(samples("postgres")) if sample.get("postgres_peers"))
    text = next(file.text for file in Role(ROLE, samples("postgres")[number]).files() if file.dest.endswith("/gate"))
    (tmp_path / "gate.py").write_text(text)
    (tmp_path / "pg_replslot").mkdir()
    found = load_module(tmp_path / "gate.py")
    for name, value in {
        "DATA": str(tmp_path),
        "ALONE": str(tmp_path / "alone"),
        "PASSED": str(tmp_path / "passed"),
    }.items():
        monkeypatch.setattr(found, name, value)
    monkeypatch.setattr(found, "PEERS", ["198.18.0.2", "198.18.0.3"])
    monkeypatch.setattr(found, "control", lambda: ("7", 2))
    monkeypatch.setattr(found, "ask", lambda peer: None)
    return found


def test_nobody_answers_a_primary_with_replicas_after_a_boot(gate: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pg_replslot/db2").mkdir()
    assert "none of 198.18.0.2, 198.18.0.3 answers" in gate.refusal()
    (tmp_path / "passed").touch()
    assert gate.refusal() == "", "the machine was not booted again"
    (tmp_path / "passed").unlink()
    (tmp_path / "alone").touch()
    assert gate.refusal() == "", "somebody has said that none was promoted"
    assert "none of" in gate.refusal(), "and said it once"


def test_a_primary_without_a_slot_has_no_replica_to_ask(gate: ModuleType) -> None:
    assert gate.refusal() == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((False, "7", 2), "198.18.0.3 is the primary now"),
        ((True, "7", 3), "follows a primary that was promoted meanwhile (timeline 3; here it is 2)"),
        ((True, "7", 2), ""),
        ((False, "8", 9), ""),
    ],
)
def test_what_another_member_says_decides(
    gate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[bool, str, int], words: str
) -> None:
    monkeypatch.setattr(gate, "ask", lambda peer: answer if peer == "198.18.0.3" else None)
    assert words in gate.refusal()
    assert bool(gate.refusal()) is bool(words), "slots or not"


# --- what a former primary alone has

alone = library("postgres_alone")
# Of PostgreSQL 17, two commits, one of them of a prepared transaction, and one that was given up.
DUMPED = """\
rmgr: Heap        len (rec/tot):     54/   150, tx:        749, lsn: 0/03000060, prev 0/03000028, desc: INSERT off: 3, flags: 0x08
rmgr: Transaction len (rec/tot):     34/    34, tx:        749, lsn: 0/030000F8, prev 0/03000060, desc: COMMIT 2031-05-01 12:00:00.1 UTC
rmgr: Transaction len (rec/tot):     34/    34, tx:        750, lsn: 0/03000120, prev 0/030000F8, desc: ABORT 2031-05-01 12:00:00.2 UTC
rmgr: Transaction len (rec/tot):     66/    66, tx:          0, lsn: 0/03000148, prev 0/03000120, desc: COMMIT_PREPARED 751: 2031-05-01
rmgr: Standby     len (rec/tot):     50/    50, tx:          0, lsn: 0/03000190, prev 0/03000148, desc: RUNNING_XACTS nextXid 752
"""


def test_a_former_primarys_own_commits_and_bytes_are_counted_from_where_the_other_was_promoted() -> None:
    found = alone.counted(DUMPED, "0/3000060")
    assert (found["commits"], found["bytes"]) == (2, 0x190 + 50 - 0x60)
    assert (found["from"], found["to"]) == ("0/3000060", "0/30001C2")
    assert alone.counted("", "0/3000060") == {"from": "0/3000060", "to": "0/3000060", "bytes": 0, "commits": 0}
    # One record is one that has a length.
    [_, one, *_] = DUMPED.splitlines()
    assert alone.counted(one, "0/30000F8") == {"from": "0/30000F8", "to": "0/300011A", "bytes": 34, "commits": 1}
    assert alone.position("1/10") == 2**32 + 16


def test_where_a_former_primarys_timeline_was_left_is_read_from_the_promoted_ones_history() -> None:
    history = "1\t0/3000060\tno recovery target specified\n\n2\t1/A0000028\tno recovery target specified\n"
    assert alone.branched_at(history, 1) == "0/3000060"
    assert alone.branched_at(history, 2) == "1/A0000028"
    with pytest.raises(server.Refused, match="does not descend from timeline 3 of this server"):
        alone.branched_at(history, 3)
