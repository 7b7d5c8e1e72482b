"""haproxy: which settings are refused and in which words, and what decides about a server, without HAProxy."""

import importlib.util
from pathlib import Path

import pytest
from test_templates import samples

from rendered import Role

ROLE = Path(__file__).resolve().parents[2] / "roles/haproxy"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


filters = load(ROLE / "filter_plugins/haproxy_problems.py")
problems = filters.haproxy_problems
server = load(ROLE / "library/haproxy_server.py")


def settings(**changes):
    good = {
        "name": "edge", "server_names": ["shop.example.com"], "sections": "", "postgres": {}, "addresses": [],
        "backends": [{"name": "web1", "address": "192.0.2.11", "port": 443}],
        "ports": {"http": 80, "https": 443, "stats": 8404}, "tls": "internal", "tls_files": ["/a", "/b"],
        "backend_tls": False, "backend_ca": "/ca.pem", "backend_name": "shop.example.com", "balance": "leastconn",
        "health_path": "/readyz", "health_host": "shop.example.com", "max_connections": 2000, "memory_mb": 0,
        "rate_limits": [], "networks": {"haproxy_trusted_proxies": []},
        "seconds": {"haproxy_queue_seconds": 5},
    }  # fmt: skip
    return {**good, **changes}


def test_settings_that_work_are_not_refused():
    limits = [
        {"requests": 100, "seconds": 10},
        {"path_prefix": "/login", "methods": ["POST"], "requests": 5, "seconds": 60},
    ]
    assert problems(settings()) == []
    assert problems(settings(rate_limits=limits, memory_mb=512)) == []
    assert problems(settings(server_names=["*.example.com"], addresses=["2001:db8::1"])) == []
    raw = settings(
        sections="listen x", server_names=[], backends=[], health_host="", backend_name="", tls_files=["", ""]
    )
    assert problems(raw) == []


POSTGRES = {"servers": [{"name": "db1", "address": "192.0.2.21"}], "primary_port": 6440, "ca": "/ca.pem"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"servers": []}, "haproxy_postgres has no servers."),
        ({"servers": [{"name": "db1"}]}, "haproxy_postgres.servers, entry 1, has no address."),
        ({"servers": [{"name": "primary", "address": "192.0.2.21"}]}, "has the name primary"),
        ({"servers": [{"name": "db_1", "address": "192.0.2.21"}]}, "db_1, which no certificate can carry"),
        ({"servers": [{"name": "db1", "address": "192.0.2.21", "port": 0}]}, "has the port 0"),
        ({"primary_port": None}, "has the ports [None]"),
        ({"primary_port": 8404}, "Give each a number of its own."),
        ({"replica_port": 6440}, "Give each a number of its own."),
        ({"ca": ""}, "Set all three to paths on the host."),
        ({"user": "it's"}, "has the user it's."),
        ({"lag_seconds": 0}, "has lag_seconds 0."),
        ({"lag": 5}, "unknown key lag"),
    ],
)
def test_a_way_to_postgresql_that_cannot_work_is_said_in_a_sentence(changes, words):
    assert problems(settings(postgres=POSTGRES)) == []
    found = problems(settings(postgres={**POSTGRES, **changes}))
    assert len(found) == 1 and words in found[0]


def test_an_instance_is_one_thing():
    assert "Empty one of them." in problems(settings(postgres=POSTGRES, sections="listen x"))[0]
    assert "Leave haproxy_tls alone." in problems(settings(postgres=POSTGRES, tls="letsencrypt"))[0]


def test_a_server_that_answers_and_is_no_replica_keeps_its_sessions_and_gets_no_new_ones():
    """NOLB, which the checks' L7OKC gives; one that is no longer the primary is down, and its sessions end."""
    [text] = [
        file.text
        for sample in samples("haproxy")
        if sample.get("haproxy_postgres", {}).get("replica_port")
        for file in Role(ROLE, sample).files()
        if "listen replicas" in file.text
    ]
    primary, replicas = text.split("\nlisten replicas\n")
    expected = "tcp-check expect string stepladder:"
    assert [line.strip() for line in primary.splitlines() if expected in line] == [f"{expected}primary"]
    rules = [line.strip() for line in replicas.splitlines() if expected in line]
    assert rules == [expected, f"{expected}replica error-status L7OKC"]
    assert all(
        "on-marked-down shutdown-sessions" in line for line in text.splitlines() if line.strip().startswith("server db")
    )


def test_the_question_to_postgresql_has_its_own_length_in_it():
    startup = bytes.fromhex(filters.haproxy_postgres_startup("haproxy"))
    assert int.from_bytes(startup[:4], "big") == len(startup) and startup[4:8] == b"\0\3\0\0"
    assert b"user\0haproxy\0database\0postgres\0" in startup and startup.endswith(b"\0\0")
    query = bytes.fromhex(filters.haproxy_postgres_query("select 1"))
    assert query == b"Q\0\0\0\x0dselect 1\0X\0\0\0\4"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "My Edge"}, "haproxy_name is My Edge. Use small letters"),
        ({"server_names": []}, "haproxy_server_names is []. List the host names"),
        ({"server_names": ["shop.example.com:443"]}, "without ports"),
        ({"backends": []}, "haproxy_backends is empty."),
        ({"backends": [{"name": "a", "address": "192.0.2.1"}]}, "entry 1, has no port."),
        ({"backends": [{"name": "a b", "address": "192.0.2.1", "port": 80}]}, "has the name a b."),
        ({"backends": [{"name": "a", "address": "1; x", "port": 80}]}, "neither an address nor a host name"),
        ({"backends": [{"name": "a", "address": "192.0.2.1", "port": "http"}]}, "has the port http"),
        ({"backends": [{"name": "a", "address": "192.0.2.1", "port": 80, "weight": 0}]}, "To take it out, drain it."),
        ({"backends": [{"name": "a", "adress": "192.0.2.1", "port": 80}]}, "unknown key adress; it knows address,"),
        ({"backends": [{"name": n, "address": "192.0.2.1", "port": 80} for n in "ab"]}, "entry 2, is the second with the place"),
        ({"ports": {"http": 80, "https": 80, "stats": 0}}, "Give each a number of its own"),
        ({"tls_files": ["", "/b"]}, "haproxy_tls_certificate or haproxy_tls_key is empty"),
        ({"tls": "files", "tls_files": ["/nowhere", "/b"]}, "/nowhere is not a file on the controller"),
        ({"tls": "letsencrypt", "server_names": ["*.example.com"]}, "the HTTP challenge cannot prove"),
        ({"health_path": "/readyz?x=1"}, "without a query"),
        ({"health_host": ""}, "haproxy_health_host is . Set it to a host name."),
        ({"balance": "leastconn\nacl"}, "haproxy_balance is"),
        ({"backend_tls": True, "backend_ca": ""}, "Set it to the CA's path."),
        ({"addresses": ["192.0.2.0/24"]}, "not an address of a host"),
        ({"networks": {"haproxy_trusted_proxies": ["edge1"]}}, "haproxy_trusted_proxies has edge1, which is not"),
        ({"max_connections": 5000, "memory_mb": 256}, "can take 538 MB, more than haproxy_memory_mb, 256."),
        ({"max_connections": 150001}, "It is a number from 10 to 150000."),
        ({"rate_limits": [{"path_prefix": "/readyz", "requests": 5, "seconds": 1}]}, "which is what health checks ask"),
        ({"rate_limits": [{"requests": 5}]}, "has the seconds None"),
        ({"rate_limits": [{"requests": 0, "seconds": 1}]}, "has the requests 0"),
        ({"rate_limits": [{"requests": 5, "seconds": 1, "methods": "POST"}]}, "[POST] say"),
        ({"rate_limits": [{"requests": 5, "seconds": 1, "path": "/a"}]}, "unknown key path"),
        ({"rate_limits": [{"requests": 5, "seconds": 1}] * 4}, "counts at most 3"),
        ({"seconds": {"haproxy_queue_seconds": 0}}, "haproxy_queue_seconds is 0."),
        ({"sections": "listen x", "name": ""}, "haproxy_name is ."),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_a_sentence(changes, words):
    found = problems(settings(**changes))
    assert any(words in sentence for sentence in found), found
    assert all(sentence[-1] in ".:@%-say" for sentence in found)


ROWS = [
    {"pxname": "site", "svname": "one", "status": "UP", "tracked": ""},
    {"pxname": "site", "svname": "two", "status": "UP 1/2", "tracked": ""},
    {"pxname": "other", "svname": "two", "status": "DRAIN", "tracked": ""},
    {"pxname": "once", "svname": "one", "status": "UP", "tracked": "site/one"},
]


def test_server_is_found_by_its_name_or_with_its_backend():
    assert server.find(ROWS, "one") is ROWS[0]
    assert server.find(ROWS, "other/two") is ROWS[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("three", "There are: other/two, site/one, site/two."),
        ("two", "Say which: site/two, other/two."),
    ],
)
def test_server_that_is_none_or_several_is_refused(name, words):
    with pytest.raises(server.Refused, match=words):
        server.find(ROWS, name)


@pytest.mark.parametrize(
    ("status", "up"),
    [("UP", True), ("UP 1/2", True), ("no check", True), ("DOWN", False), ("DOWN 1/2", False), ("DRAIN", False),
     ("MAINT", False), ("NOLB", False)],
)  # fmt: skip
def test_status_says_whether_new_requests_go_there(status, up):
    assert server.is_up({"status": status}) is up
