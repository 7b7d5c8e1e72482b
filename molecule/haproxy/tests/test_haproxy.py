"""What the role promises, asked of a running edge: who gets what, who is refused, and what a change disturbs."""

import base64
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra

SCENARIO = Path(__file__).resolve().parents[1]
PREFIX, DEBIAN = os.environ.get("STEPLADDER_SCENARIO", "haproxy"), os.environ.get("STEPLADDER_DEBIAN", "13")
FIRST, SECOND = f"{PREFIX}-debian{DEBIAN}", f"{PREFIX}-second-debian{DEBIAN}"
SHOP, BLOG = "shop.example.com", "blog.example.com"
CA, PEBBLE_ROOT = "/etc/stepladder/tls/ca.pem", "/run/pebble-root.pem"
NO_HANDSHAKE, NOT_TRUSTED = 35, 60  # curl's own words
CLOSED = (52, 56)
BACKENDS = {"one", "two", "three"}
PROXY = ("--interface", "127.0.0.2")
# Actions that make no remote call.
LOCAL = {"assert", "fail", "debug", "include_tasks", "import_tasks", "validate_argument_spec"}

testinfra_hosts = [f"docker://{FIRST}"]


@pytest.fixture(scope="module")
def second():
    return testinfra.get_host(f"docker://{SECOND}")


def play(*words, playbook="edge.yml", limit=FIRST, **variables):
    """Run one of the scenario's plays with other variables; returns the finished process."""
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--limit", limit]
    command += [str(SCENARIO / playbook), "-e", json.dumps(variables), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=SCENARIO.parents[1])


def played(*words, **more):
    done = play(*words, **more)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def sentence(done):
    """What a failed play said, on one line."""
    assert done.returncode != 0, done.stdout[-2000:]
    return re.sub(r"\s+", " ", done.stdout)


@dataclass
class Answer:
    """What curl got: its exit code, and status, version, headers (small letters) and body of the answer."""

    code: int
    status: int = 0
    version: str = ""
    headers: dict | None = None
    text: str = ""
    seconds: float = 0.0

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def told(self):
        """The headers that the backend was given."""
        return self.json["headers"]


def ask(host, path="/", *options, name=SHOP, scheme="https", ca=CA, address="127.0.0.1", ports=(80, 443)):
    """One request to the site of that name, with the certificate verified."""
    port = ports[scheme == "https"]
    shape = "\n%{http_code} %{http_version} %{time_total}"
    words = ["curl", "-sS", "--path-as-is", "-m", "20", "-D", "/dev/stderr", "-w", shape]
    words += [
        "--connect-to",
        f"{name}:{port}:{address}:{port}",
        "--cacert",
        ca,
        *options,
        f"{scheme}://{name}:{port}{path}",
    ]
    done = host.run(" ".join(["%s"] * len(words)), *words)
    if done.rc != 0:
        return Answer(done.rc)
    text, _, said = done.stdout.rpartition("\n")
    status, version, seconds = said.split()
    lines = [line.split(": ", 1) for line in done.stderr.splitlines() if ": " in line]
    headers = {name.lower(): value.strip() for name, value in lines}
    return Answer(0, int(status), version, headers, text, float(seconds))


def tell(host, command, instance="edge", sock="admin"):
    """A command to HAProxy's socket, as an operator gives it."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode() + b'\\n'); s.shutdown(socket.SHUT_WR); "
        "print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return host.check_output("python3 -c %s %s %s", script, f"/run/haproxy-{instance}/{sock}.sock", command)


def states(host):
    """What HAProxy says of each server of the site."""
    rows = [line.split(",") for line in tell(host, "show stat").splitlines() if line.startswith("site,")]
    return {row[1]: row[17] for row in rows if row[1] != "BACKEND"}


def status(host, server):
    return states(host)[server]


def take(host, state, *servers):
    tell(host, "; ".join(f"set server site/{server} state {state}" for server in servers))


def until(what, seconds=15):
    """Wait until what() holds; gives the seconds that it took."""
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        if what():
            return time.monotonic() - started
        time.sleep(0.1)
    pytest.fail(f"not within {seconds} s")


def master(host, instance="edge"):
    return host.check_output(f"systemctl show -P MainPID haproxy-{instance}")


def worker(host, instance="edge"):
    return re.search(r"(?ms)^# workers\n(\d+)", tell(host, "show proc", instance, "master"))[1]


class Load:
    """Requests through the edge at a constant rate while something happens."""

    def __init__(self, host, path="/?seconds=0.05", seconds=60, rate=50):
        self.host = host
        host.run(
            "rm -f /run/load.json /run/load.stop; (setsid /usr/local/lib/load.py %s %s %s >/run/load.json 2>&1 &)",
            str(seconds), str(rate), path,
        )  # fmt: skip
        time.sleep(1.5)

    def result(self):
        self.host.run("touch /run/load.stop; for i in $(seq 400); do test -s /run/load.json && break; sleep 0.1; done")
        found = json.loads(self.host.file("/run/load.json").content_string)
        print(found)
        assert found["again"] <= 3, "kept connections were closed under requests"
        return found


def log_lines(host, request_id, name="edge"):
    text = host.check_output(f"journalctl -q -o cat -u haproxy-{name} -n 400")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("request_id") == request_id]


@pytest.fixture(autouse=True)
def three_backends(host):
    """All backends up and in rotation before and after each test."""
    yield
    host.run(
        "rm -f /run/*.sick /run/*.early /run/order.status /run/slow.status; "
        "systemctl start backend@one-8001 backend@two-8002 backend@three-8003"
    )
    take(host, "ready", *sorted(BACKENDS))
    until(lambda: set(states(host).values()) == {"UP"})


# Who gets in, and how.


def test_http_goes_to_https_with_path_and_query(host):
    for name in (SHOP, f"www.{SHOP}"):
        answer = ask(host, "/a%20b?c=d", scheme="http", name=name)
        assert (answer.status, answer.headers["location"]) == (301, f"https://{name}/a%20b?c=d")


def test_certificate_is_verified_against_the_ca_and_no_other(host):
    assert ask(host).status == 200
    assert ask(host, ca="/etc/ssl/certs/ca-certificates.crt").code == NOT_TRUSTED


def test_http2_is_agreed_on_and_http1_is_spoken_to_whoever_wants_it(host):
    assert ask(host).version == "2"
    assert ask(host, "/", "--http1.1").version == "1.1"


def test_old_tls_is_refused(host):
    shake = (
        "openssl s_client -connect 127.0.0.1:443 -servername shop.example.com -cipher DEFAULT@SECLEVEL=0 {} </dev/null"
    )
    for version in ("-tls1", "-tls1_1"):
        assert "alert protocol version" in host.run(shake.format(version)).stderr
    assert "Protocol  : TLSv1.2" in host.run(shake.format("-tls1_2")).stdout


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_unknown_name_gets_nothing_of_the_site(host, version):
    assert ask(host, name="other.example.com", scheme="http").code in CLOSED
    assert ask(host, "/", version, "-k", name="other.example.com").code == NO_HANDSHAKE
    assert ask(host, "/", version, "-k", name="127.0.0.1").code == NO_HANDSHAKE
    misdirected = ask(host, "/", version, "-H", "Host: other.example.com")
    assert (misdirected.status, "server" in misdirected.text) == (421, False)


def test_what_a_client_says_of_itself_is_not_believed(host):
    names = ["X-Forwarded-For: 203.0.113.9", "X-Real-IP: 203.0.113.9", "X-Forwarded-Proto: http", "X-Forwarded-Host: evil",
             "X-Forwarded-Port: 1", "Forwarded: for=203.0.113.9", "Proxy: evil", "X_Forwarded_For: 203.0.113.9",
             "X_Real_IP: 203.0.113.9", "X-Request-ID: mine"]  # fmt: skip
    told = ask(host, "/", *[word for name in names for word in ("-H", name)]).told
    assert told["x-forwarded-for"] == told["x-real-ip"] == "127.0.0.1"
    assert told["x-forwarded-proto"] == "https"
    assert told["x-request-id"] != "mine"
    assert not [name for name, value in told.items() if "evil" in value or "203.0.113.9" in value], told
    assert not {"x_forwarded_for", "x_real_ip", "forwarded", "x-forwarded-port", "proxy"} & set(told)


def test_trusted_proxy_is_believed_and_only_as_far_as_it_goes(host):
    def client(forwarded):
        return ask(host, "/", *PROXY, "-H", f"X-Forwarded-For: {forwarded}").told["x-forwarded-for"]

    assert client("203.0.113.9") == "203.0.113.9"
    assert client("198.51.100.1, 203.0.113.9") == "203.0.113.9", (
        "what the client itself said is before the proxy's word"
    )
    assert client("198.51.100.1, 203.0.113.9, 127.0.0.12") == "203.0.113.9", "a proxy behind a proxy"
    assert client("not an address") == "127.0.0.2"
    told = ask(host, "/", *PROXY, "-H", "X-Forwarded-Proto: http", "-H", "X-Request-ID: from-the-proxy.1").told
    assert (told["x-forwarded-proto"], told["x-request-id"]) == ("http", "from-the-proxy.1")
    told = ask(host, "/", *PROXY, "-H", 'X-Request-ID: a"b', "-H", "X-Forwarded-Proto: gopher").told
    assert told["x-forwarded-proto"] == "https" and told["x-request-id"] != 'a"b'


def test_request_id_is_made_passed_on_returned_and_logged(host):
    answer = ask(host, "/a?b=c")
    made = answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", made)
    assert answer.told["x-request-id"] == made
    assert ask(host).headers["x-request-id"] != made
    [line] = log_lines(host, made)
    assert (line["method"], line["host"], line["uri"], line["status"]) == ("GET", SHOP, "/a?b=c", 200)
    assert (line["client"], line["protocol"], line["server"]) == ("127.0.0.1", "HTTP/2.0", answer.json["server"])


def test_order_is_told_and_logged_as_any_other_request(host):
    """It goes through HAProxy a second time, which nobody sees."""
    answer = ask(host, "/", *PROXY, "-H", "X-Forwarded-For: 203.0.113.9", "-d", "x=1")
    assert answer.told["x-forwarded-for"] == "203.0.113.9"
    assert answer.told["x-request-id"] == answer.headers["x-request-id"]
    assert not [name for name in answer.headers if "stepladder" in name]
    [line] = log_lines(host, answer.headers["x-request-id"])
    assert (line["client"], line["method"], line["server"]) == ("203.0.113.9", "POST", answer.json["server"])


@pytest.mark.parametrize(
    "agent",
    [b'quote " back \\ slash', b"\xff\xfe not UTF-8", "ünï".encode(), b"tab\tand %s %[src] '", b"long " + b'"' * 6000],
    ids=["quotes", "bytes", "accents", "formats", "long"],
)
def test_log_is_json_whatever_a_client_sends(host, agent):
    name = f"odd-{abs(hash(agent))}"
    script = (
        "import base64, socket, ssl, sys; c = ssl.create_default_context(cafile=sys.argv[1]); "
        "s = c.wrap_socket(socket.create_connection(('127.0.0.1', 443), source_address=('127.0.0.2', 0)), server_hostname=sys.argv[2]); "
        "s.sendall(base64.b64decode(sys.argv[3])); print(s.recv(99))"
    )
    agent = agent[:2000] + b"\\" * 3000 if len(agent) > 2000 else agent
    text = f'GET /%22?"<> HTTP/1.1\r\nHost: {SHOP}\r\nX-Request-ID: {name}\r\nUser-Agent: '.encode() + agent
    text += b"\r\nReferer: " + agent + b"\r\nConnection: close\r\n\r\n"
    assert "200" in host.check_output("python3 -c %s %s %s %s", script, CA, SHOP, base64.b64encode(text).decode())
    [line] = log_lines(host, name)
    expected = agent.decode("utf-8", "ignore").split(" ")[0][:100]
    assert line["agent"].startswith(expected.strip()), line


# Where requests go.


def curl_options(*options):
    return " ".join([f"-s --cacert {CA} --connect-to ::127.0.0.1:443 -o /dev/null -w '%{{http_code}}'", *options])


def curl(seconds, *options):
    """A request that takes that long, as a shell's words; prints its status."""
    return f"curl {curl_options(*options)} 'https://{SHOP}/?seconds={seconds}'"


def in_background(host, command, output="/dev/null"):
    host.run(f"({command}) >{output} 2>/dev/null &")


def test_idle_server_gets_the_next_request(host):
    assert {ask(host).json["server"] for _ in range(6)} == BACKENDS
    in_background(host, f"for i in 1 2 3 4; do {curl(8)} & done")
    until(lambda: sum(sessions(host).values()) == 4)
    busiest = max(sessions(host), key=sessions(host).get)
    assert busiest not in {ask(host).json["server"] for _ in range(6)}
    until(lambda: sum(sessions(host).values()) == 0)


def sessions(host):
    """How many requests each server has, those that are to be sent only once among them."""
    rows = [line.split(",") for line in tell(host, "show stat").splitlines() if line.startswith(("site,", "once,"))]
    return {server: sum(int(row[4]) for row in rows if row[1] == server) for server in BACKENDS}


def test_server_whose_health_page_fails_leaves_rotation_and_comes_back(host):
    host.run("touch /run/two.sick")
    gone = until(lambda: status(host, "two").startswith("DOWN"))
    assert "two" not in {ask(host).json["server"] for _ in range(6)}
    host.run("rm /run/two.sick")
    back = until(lambda: status(host, "two") == "UP")
    assert gone < 5 and back < 5, (gone, back)
    assert "two" in {ask(host).json["server"] for _ in range(6)}


def test_request_that_a_server_has_not_begun_goes_to_another_one_an_order_too(host):
    """425 is how a web server says that its application was not reached."""
    host.run("touch /run/one.early /run/two.early; rm -f /run/orders")
    answers = [ask(host, f"/order?{number}", "-X", "POST", "-d", "one") for number in range(8)]
    assert {(answer.status, answer.json["server"]) for answer in answers} == {(200, "three")}
    assert len(orders(host)) == 8
    assert {ask(host, "/").status for _ in range(8)} == {200}
    host.run("touch /run/three.early")
    assert (ask(host, "/").status, ask(host, "/", "-X", "POST", "-d", "one").status) == (503, 503)


def test_order_whose_body_comes_late_goes_to_another_server_too(host):
    host.run("touch /run/one.early /run/two.early")
    script = (
        "import http.client, ssl, sys, time\n"
        f"c = http.client.HTTPSConnection('{SHOP}', context=ssl.create_default_context(cafile='{CA}'), timeout=20)\n"
        "c.putrequest('POST', '/order'); c.putheader('Content-Length', '3'); c.endheaders()\n"
        "time.sleep(0.5); c.send(b'one'); print(c.getresponse().status)"
    )
    host.run(f"grep -q ' {SHOP}$' /etc/hosts || echo 127.0.0.1 {SHOP} >> /etc/hosts")
    assert [host.check_output("python3 -c %s", script) for _ in range(3)] == ["200"] * 3


def test_killed_server_costs_no_request_that_may_be_sent_again(host):
    load = Load(host)
    host.run("systemctl kill -s KILL --kill-whom=main backend@two-8002")
    time.sleep(3)
    found = load.result()
    assert set(found["kinds"]) == BACKENDS, found
    assert found["longest"] < 10, found


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("kept", [False, True], ids=["first", "later"])
def test_order_that_a_killed_server_had_begun_is_not_sent_twice(host, version, kept):
    """A later request of a client's connection is one that HAProxy would have the client send again."""
    take(host, "drain", "two", "three")
    # Connections to the server that wait to be used again, and a request of an earlier test is not taken for the order.
    host.run(f"rm -f /run/orders; for i in 1 2 3 4; do {curl(0.2)} & done; wait")
    until(lambda: not any(sessions(host).values()))
    order = f"{curl_options(version)} -d x=1 'https://{SHOP}/order?seconds=60'"
    in_background(host, f"{curl(0, version)} --next {order}" if kept else f"curl {order}", "/run/order.status")
    until(lambda: orders(host))
    take(host, "ready", "two", "three")
    host.run("systemctl kill -s KILL --kill-whom=main backend@one-8001")
    seconds = until(lambda: host.file("/run/order.status").content_string == ("200502" if kept else "502"))
    assert seconds < 3
    assert len(orders(host)) == 1 and sum(sessions(host).values()) == 0


def orders(host):
    """What servers have begun to do of requests that are not to be repeated."""
    return host.run("cat /run/orders").stdout.splitlines()


def test_body_arrives_whole(host):
    host.run("head -c 3000000 /dev/urandom > /run/body")
    wanted = host.check_output("sha256sum /run/body").split()[0]
    for version in ("--http1.1", "--http2"):
        answer = ask(host, "/upload", version, "-X", "POST", "--data-binary", "@/run/body", "-H", "Expect:")
        assert (answer.json["length"], answer.json["sha256"]) == (3000000, wanted)


def test_websocket_passes_and_no_other_protocol_does(host):
    script = (
        "import socket, ssl, sys; c = ssl.create_default_context(cafile=sys.argv[1]); "
        "s = c.wrap_socket(socket.create_connection(('127.0.0.1', 443)), server_hostname=sys.argv[2]); s.settimeout(10); "
        "s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: ' + sys.argv[2].encode() + b'\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n'); "
        "head = s.recv(4096); s.sendall(b'\\x81\\x05hello'); print(head.decode(), s.recv(99))"
    )
    said = host.check_output("python3 -c %s %s %s", script, CA, SHOP)
    assert said.startswith("HTTP/1.1 101") and "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in said and "hello" in said
    told = ask(host, "/", "--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: other").told
    assert "upgrade" not in told


# What is too much, and what takes too long.


def test_nobody_up_is_said_at_once_with_a_page(host):
    host.run("systemctl stop backend@one-8001 backend@two-8002 backend@three-8003")
    until(lambda: all(state.startswith("DOWN") for state in states(host).values()))
    answer = ask(host)
    assert (answer.status, answer.headers["retry-after"]) == (503, "300")
    assert "back soon" in answer.text and "text/html" in answer.headers["content-type"]
    assert answer.seconds < 0.5
    assert answer.headers["x-request-id"]


def test_limit_is_per_client_and_no_health_check_counts(host):
    def login(client, path="/login", *more):
        return ask(host, path, *PROXY, "-H", f"X-Forwarded-For: {client}", *more)

    answers = [login("203.0.113.1").status for _ in range(6)]
    assert answers == [200] * 5 + [429]
    assert login("203.0.113.1", "/log%69n").status == 429, "another spelling of the same path"
    refused = login("203.0.113.1", "/login/again", "-X", "POST")
    assert (refused.status, refused.headers["retry-after"]) == (429, "4")
    assert login("203.0.113.1", "/login", "-I").status == 200, "a method that is not limited"
    assert login("203.0.113.1", "/").status == 200, "a path that is not limited"
    assert login("203.0.113.2").status == 200, "another client"
    assert [login("2001:db8::1").status for _ in range(5)] == [200] * 5
    assert login("2001:db8::2").status == 429, "an IPv6 client may have any address of its network"
    assert login("2001:db8:1::2").status == 200
    assert [login("203.0.113.3", "/", "-X", "PUT").status for _ in range(6)][-1] == 429, "a limit of all pages"
    assert 429 not in {login("203.0.113.3", "/readyz", "-X", "PUT").status for _ in range(8)}
    time.sleep(9)
    assert login("203.0.113.1").status == 200, "a client that waited"


def test_client_that_sends_its_request_in_drops_is_cut_off(host):
    script = (
        "import socket, ssl, sys, time; c = ssl.create_default_context(cafile=sys.argv[1]); "
        "s = c.wrap_socket(socket.create_connection(('127.0.0.1', 443)), server_hostname=sys.argv[2]); started = time.time()\n"
        "s.settimeout(0.4); s.sendall(b'GET / HTTP/1.1\\r\\nHost: ' + sys.argv[2].encode() + b'\\r\\n'); data = b''\n"
        "while time.time() < started + 12 and not data:\n"
        "    try: data = s.recv(99) or b'closed'\n"
        "    except TimeoutError: s.sendall(b'X-A: b\\r\\n')\n"
        "print(time.time() - started, data)"
    )
    seconds, said = host.check_output("python3 -c %s %s %s", script, CA, SHOP).split(" ", 1)
    assert 2 < float(seconds) < 7 and "408" in said, (seconds, said)


def test_full_servers_make_requests_wait_only_so_long(host):
    tell(host, "; ".join(f"set maxconn server site/{server} 1" for server in BACKENDS))
    try:
        in_background(host, f"for i in 1 2 3; do {curl(6)} & done")
        until(lambda: sum(sessions(host).values()) == 3)
        answer = ask(host)
        assert answer.status == 503 and 1.5 < answer.seconds < 4, answer
        assert "back soon" in answer.text
        until(lambda: sum(sessions(host).values()) == 0)
    finally:
        tell(host, "; ".join(f"set maxconn server site/{server} 200" for server in BACKENDS))


# What operations disturb.


def test_reload_drops_nothing(host):
    load = Load(host)
    pid, workers = master(host), {worker(host)}
    for _ in range(4):
        host.check_output("systemctl reload haproxy-edge")
        workers.add(worker(host))
        time.sleep(0.5)
    found = load.result()
    assert set(found["kinds"]) == BACKENDS, found
    assert len(workers) == 5 and master(host) == pid
    assert found["longest"] < 10, found


def test_draining_under_load_fails_nobody_and_outlives_reload_run_and_restart(host):
    load = Load(host)
    assert "changed=1 " in played(playbook="drain.yml", haproxy_server="two")
    assert sessions(host)["two"] == 0
    stays_away(host, "two")
    host.check_output("systemctl reload haproxy-edge")
    stays_away(host, "two")
    found = load.result()
    assert set(found["kinds"]) == BACKENDS, found
    assert "changed=0 " in played()
    assert "changed=0 " in played(playbook="drain.yml", haproxy_server="site/two")
    host.check_output("systemctl restart haproxy-edge")
    until(lambda: status(host, "one") == "UP")
    stays_away(host, "two")
    host.run("touch /run/two.sick")
    until(lambda: status(host, "two").startswith("DOWN"))
    refused = sentence(play(playbook="readmit.yml", haproxy_server="two", haproxy_readmit_seconds=3))
    assert "site/two was readmitted, but is DOWN" in refused and "503 Service Unavailable" in refused
    host.run("rm /run/two.sick")
    played(playbook="readmit.yml", haproxy_server="two")
    assert status(host, "two") == "UP"
    assert "two" in {ask(host).json["server"] for _ in range(6)}


def test_web_hosts_play_drains_and_readmits_at_the_edge_and_fails_nobody(host):
    load = Load(host)
    said = played(playbook="rolling.yml", limit="all")
    found = load.result()
    assert set(found["kinds"]) == BACKENDS, found
    assert "all are up" in said
    refused = sentence(play(playbook="rolling.yml", limit="all", server="web9"))
    assert "there is no server web9. There are: site/one, site/three, site/two." in refused


def test_readmitted_server_gets_requests_only_after_fresh_checks(host):
    try:
        # What the last check found is good for half a minute.
        played(haproxy_health_seconds=30)
        played(playbook="drain.yml", haproxy_server="two")
        host.check_output("systemctl kill -s KILL --kill-whom=main backend@two-8002")
        refused = sentence(play(playbook="readmit.yml", haproxy_server="two", haproxy_readmit_seconds=1))
        assert "site/two was readmitted, but is DOWN after 1 s: its health check says" in refused
        assert "two" not in {ask(host).json["server"] for _ in range(6)}
    finally:
        played()
    host.check_output("systemctl start backend@two-8002")
    assert "changed=0 " in played(playbook="readmit.yml", haproxy_server="two")
    assert status(host, "two") == "UP"


def test_drains_wait_for_each_other_so_that_the_last_one_stays(host):
    in_background(host, "flock /var/lib/haproxy-edge sleep 5")
    started = time.monotonic()
    played(playbook="drain.yml", haproxy_server="two")
    assert host.run("pgrep -x flock").rc != 0 and time.monotonic() > started + 3


def test_drained_server_stays_so_when_another_one_is_taken_out_of_the_list(host):
    places = [{"name": name, "address": "127.0.0.1", "port": 8000 + number}
              for number, name in enumerate(("one", "two", "three"), 1)]  # fmt: skip
    played(playbook="drain.yml", haproxy_server="two")
    try:
        assert "changed=1 " in played(haproxy_backends=places[1:])
        assert (set(states(host)), status(host, "two")) == ({"two", "three"}, "DRAIN")
        # The one that is left has moved; the state that is kept must not bring its old place back.
        moved = [places[1], {**places[2], "port": 8001}]
        played(haproxy_backends=moved)
        assert {ask(host).json["server"] for _ in range(3)} == {"one"}
        assert ask(host, "/", "-d", "x=1").json["server"] == "one"
    finally:
        played()
    assert status(host, "two") == "DRAIN"


def stays_away(host, server):
    assert status(host, server) == "DRAIN"
    assert server not in {ask(host).json["server"] for _ in range(5)}


def test_drain_waits_for_what_is_under_way_in_old_processes_too(host):
    take(host, "drain", "two", "three")
    in_background(host, curl(60, "--http1.1"), "/run/slow.status")
    in_background(host, curl(60, "--http1.1", "-d x=1"), "/run/order.status")
    until(lambda: sessions(host)["one"] == 2)
    take(host, "ready", "two", "three")
    host.check_output("systemctl reload haproxy-edge")
    assert sessions(host)["one"] == 0, "the requests are with the old process"
    refused = sentence(play(playbook="drain.yml", haproxy_server="one", haproxy_drain_seconds=2))
    assert "site/one still has 2 sessions after 2 s. It stays drained" in refused
    assert status(host, "one") == "DRAIN"
    played(playbook="drain.yml", haproxy_server="one", haproxy_drain_seconds=1, haproxy_drain_leftover="close")
    until(lambda: host.file("/run/order.status").content_string not in ("", "200"))
    # HAProxy 2.6 sends the GET to another server then, and 3.0 answers it.
    assert "changed=0 " in played(playbook="drain.yml", haproxy_server="one", haproxy_drain_seconds=0)


def test_last_server_is_drained_on_purpose_only(host):
    take(host, "drain", "two", "three")
    refused = sentence(play(playbook="drain.yml", haproxy_server="one"))
    assert "site/one is the last server that is up" in refused and "It stays up" in refused
    assert status(host, "one") == "UP"
    assert "changed=1 " in played(playbook="drain.yml", haproxy_server="one", haproxy_drain_last=True)
    assert status(host, "one") == "DRAIN"


def test_more_connections_are_allowed_without_a_restart(host):
    pid = master(host)
    try:
        assert "changed=1 " in played(haproxy_max_connections=2500)
        assert "Maxconn: 7500" in tell(host, "show info") and master(host) == pid
    finally:
        played()


def test_maintenance_page_is_switched_and_a_run_leaves_it_on(host):
    played(playbook="maintenance.yml", haproxy_maintenance=True, haproxy_maintenance_message="Back at <noon>")
    answer = ask(host)
    assert (answer.status, answer.headers["retry-after"]) == (503, "300")
    assert "Back at &lt;noon&gt;" in answer.text
    assert ask(host, "/readyz").status == 200
    assert ask(host, "/", "--interface", "127.0.0.3").status == 200
    assert "changed=0 " in played()
    assert ask(host).status == 503
    assert "changed=1 " in played(playbook="maintenance.yml", haproxy_maintenance=False)
    assert ask(host).status == 200


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"haproxy_extra_frontend": "http-request make-coffee"}, "make-coffee"),
        # The check does not see that the port is taken; only the process that should listen there does.
        ({"haproxy_extra_frontend": "bind 127.0.0.1:8001"}, "HAProxy keeps its old configuration"),
    ],
    ids=["refused by the check", "refused by the new process"],
)
def test_configuration_that_cannot_take_effect_changes_nothing(host, more, words):
    pid, before = master(host), host.file("/etc/haproxy-edge/haproxy.cfg").content_string
    refused = sentence(play(**more))
    assert words in refused and "Every file was put back as it was" in refused
    assert (master(host), host.file("/etc/haproxy-edge/haproxy.cfg").content_string) == (pid, before)
    assert ask(host).status == 200
    host.check_output("systemctl reload haproxy-edge")
    assert ask(host).status == 200


def test_backends_certificate_is_verified(host):
    """The same server, as when TLS comes to a site that runs: the state that is kept must not bring the old way back."""
    over_tls = {
        "haproxy_backends": [{"name": "one", "address": "127.0.0.1", "port": 8004}],
        "haproxy_backend_tls": True,
    }
    try:
        played(**over_tls)
        until(lambda: status(host, "one") == "UP")
        assert ask(host).json["server"] == ask(host, "/", "-d", "x=1").json["server"] == "tls"
        played(**over_tls, haproxy_backend_name="other.example.com")
        until(lambda: status(host, "one").startswith("DOWN"))
        assert ask(host).status == 503
    finally:
        played()


def test_client_stays_with_one_server_by_choice_and_through_a_reload(host):
    assert len({ask(host).json["server"] for _ in range(6)}) == 3, "off by default"
    try:
        played(haproxy_affinity_seconds=60)
        until(lambda: set(states(host).values()) == {"UP"})
        chosen = {ask(host).json["server"] for _ in range(6)}
        assert len(chosen) == 1
        others = {ask(host, "/", "--interface", f"127.0.0.{n}").json["server"] for n in range(20, 26)}
        assert len(others) > 1
        host.check_output("systemctl reload haproxy-edge")
        time.sleep(1)
        assert {ask(host).json["server"] for _ in range(6)} == chosen
        assert {ask(host, "/", "-d", "x=1").json["server"] for _ in range(3)} == chosen
    finally:
        played()


def served(host, port=443, name=SHOP):
    """Fingerprint of the certificate that is served."""
    shake = f"openssl s_client -connect 127.0.0.1:{port} -servername {name} </dev/null 2>/dev/null"
    return host.check_output(f"{shake} | openssl x509 -noout -fingerprint")


def test_own_files_are_shipped_and_their_change_is_served(host, tmp_path):
    """As a person has them on the controller."""
    pid, seen = master(host), {served(host)}
    own = {"haproxy_tls": "files", "haproxy_tls_certificate": f"{tmp_path}/cert.pem",
           "haproxy_tls_key": f"{tmp_path}/key.pem"}  # fmt: skip
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={SHOP}", "-addext", f"subjectAltName=DNS:{SHOP}"]
    command += ["-keyout", own["haproxy_tls_key"], "-out", own["haproxy_tls_certificate"]]
    try:
        for count in (2, 3):
            subprocess.run(command, check=True, capture_output=True)
            assert "PRIVATE" not in played("--diff", **own)
            seen.add(served(host))
            assert len(seen) == count
        assert "changed=0 " in played(**own)
        key = host.file("/etc/haproxy-edge/tls/key.pem")
        assert (key.user, key.mode) == ("root", 0o600)
        # A certificate without its key, as after copying one file of two.
        Path(own["haproxy_tls_certificate"]).write_text(host.file("/etc/stepladder/tls/edge/cert.pem").content_string)
        refused = sentence(play(**own))
        assert "are no certificate with its key" in refused and "PRIVATE" not in refused
        assert served(host) in seen and len(seen) == 3
    finally:
        played()
    assert not host.file("/etc/haproxy-edge/tls/key.pem").exists
    assert master(host) == pid, "reloaded, not restarted"


def test_renewed_certificate_is_served_by_the_same_process(host):
    before, pid = served(host), master(host)
    folder = "/etc/stepladder/tls/edge"
    host.check_output(f"cp -a {folder} /run/edge-tls")
    try:
        host.check_output(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 -subj /CN={SHOP} "
            f"-addext subjectAltName=DNS:{SHOP} -keyout {folder}/key.pem -out {folder}/cert.pem"
        )
        host.check_output("systemctl reload haproxy-edge")
        assert served(host) != before
        # Half of a renewal: the certificate is not that of the key.
        host.check_output(f"cp /run/edge-tls/cert.pem {folder}/cert.pem")
        assert host.run("systemctl reload haproxy-edge").rc != 0
        assert served(host) != before
    finally:
        host.check_output(f"cp -a /run/edge-tls/. {folder}/ && rm -r /run/edge-tls && systemctl reload haproxy-edge")
    assert (served(host), master(host)) == (before, pid)


def test_acme_certificate_is_got_renewed_and_served_without_a_reload(second):
    second.check_output(f"curl -s --cacert {CA} https://localhost:15000/roots/0 > {PEBBLE_ROOT}")

    def blog():
        return ask(second, name=BLOG, ca=PEBBLE_ROOT, ports=(8080, 8443))

    assert blog().status == 200
    before = served(second, 8443, BLOG), master(second, "blog"), worker(second, "blog")
    renew = "REQUESTS_CA_BUNDLE=/etc/stepladder/tls/ca.pem certbot renew --force-renewal --no-random-sleep-on-renew"
    done = second.run(renew)
    assert done.rc == 0, done.stdout + done.stderr
    after = served(second, 8443, BLOG), master(second, "blog"), worker(second, "blog")
    assert after[0] != before[0] and after[1:] == before[1:]
    assert blog().status == 200
    pem = second.file("/etc/haproxy-blog/tls/site.pem")
    assert (pem.user, pem.group, pem.mode) == ("root", "haproxy", 0o640)
    second.check_output("systemctl reload haproxy-blog")
    assert served(second, 8443, BLOG) == after[0]


def test_only_what_went_wrong_is_logged_when_no_more_is_wanted(second):
    def blog(*options):
        return ask(second, "/", *options, name=BLOG, ca=PEBBLE_ROOT, ports=(8080, 8443))

    well, unknown = blog(), blog("-H", "Host: other.example.com")
    second.check_output("systemctl stop backend@one-8001")
    try:
        until(lambda: blog().status == 503)
        wrong = blog()
    finally:
        second.check_output("systemctl start backend@one-8001")
    assert (well.status, wrong.status) == (200, 503)
    assert [line["status"] for line in log_lines(second, wrong.headers["x-request-id"], "blog")] == [503]
    until(lambda: blog().status == 200)
    assert log_lines(second, well.headers["x-request-id"], "blog") == []
    assert unknown.status == 421 and unknown.text in "No such site here."
    assert '"host":"other.example.com"' in second.check_output("journalctl -q -o cat -u haproxy-blog -n 400")


# The run itself, and the host.


def remote_calls(output):
    """Tasks of a run with ANSIBLE_CALLBACKS of the JSON kind that reach the host."""
    tasks = [task for one in json.loads(output)["plays"] for task in one["tasks"]]
    asked = [task for task in tasks if not next(iter(task["hosts"].values())).get("skipped")]
    actions = [next(iter(task["hosts"].values())).get("action", "").split(".")[-1] for task in asked]
    return [action for action in actions if action not in LOCAL]


def test_second_run_changes_nothing_restarts_nothing_and_makes_few_calls(host):
    before = [(master(host, name), worker(host, name)) for name in ("edge", "database")]
    os.environ["ANSIBLE_STDOUT_CALLBACK"] = "ansible.posix.json"
    try:
        done = played()
    finally:
        del os.environ["ANSIBLE_STDOUT_CALLBACK"]
    assert all(numbers["changed"] == 0 for numbers in json.loads(done)["stats"].values())
    assert len(remote_calls(done)) <= 4, remote_calls(done)
    assert [(master(host, name), worker(host, name)) for name in ("edge", "database")] == before


def test_check_mode_says_what_would_change_and_changes_nothing(host):
    before = host.file("/etc/haproxy-edge/haproxy.cfg").content_string
    output = played("--check", "--diff", haproxy_queue_seconds=4)
    assert "+    timeout queue 4s" in output and "changed=1 " in output
    assert host.file("/etc/haproxy-edge/haproxy.cfg").content_string == before


def test_instances_on_one_host_do_not_know_of_each_other(host):
    assert json.loads(host.check_output("curl -s http://127.0.0.1:6432/"))["server"] == "one"
    pid = master(host)
    host.check_output("systemctl stop haproxy-database")
    assert ask(host).status == 200
    host.check_output("systemctl start haproxy-database")
    assert master(host) == pid
    refused = sentence(
        play(playbook="database.yml", haproxy_sections="listen x\n  bind 127.0.0.1:6432\n  serve coffee")
    )
    assert "coffee" in refused or "serve" in refused
    assert json.loads(host.check_output("curl -s http://127.0.0.1:6432/"))["server"] == "one"


def test_debians_own_instance_is_stopped_and_masked(host):
    assert host.check_output("systemctl show -P LoadState,ActiveState haproxy").split() == ["masked", "inactive"]


def test_counters_are_on_loopback_only(host):
    assert "haproxy_server_status" in host.check_output("curl -s http://127.0.0.1:8404/metrics")
    address = host.check_output("hostname -I").split()[0]
    assert host.run(f"curl -s -m 3 http://{address}:8404/metrics").rc != 0


def test_service_runs_without_privileges_and_is_kept_in(host):
    assert host.check_output("ps -o user= -C haproxy | sort -u").split() == ["haproxy"]
    score = float(
        re.search(r"exposure level for .*: ([0-9.]+)", host.check_output("systemd-analyze security haproxy-edge"))[1]
    )
    print("score", score)
    assert score <= 1.6
    for path in ("/etc/haproxy-edge/tls/site.pem", "/etc/haproxy-edge/haproxy.cfg"):
        assert host.run(f"setpriv --reuid nobody --clear-groups cat {path}").rc != 0


def test_everything_is_back_after_a_reboot(host):
    tell(host, "set server site/two state drain")
    host.check_output("/etc/haproxy-edge/control save-state")
    subprocess.run(["docker", "restart", "-t", "20", FIRST], check=True, capture_output=True)
    for name in ("edge", "database"):
        until(lambda unit=f"haproxy-{name}": host.run("systemctl is-active %s", unit).rc == 0, 60)
    until(lambda: status(host, "one") == "UP", 30)
    assert ask(host).status == 200
    # A server that is drained is first DOWN until its checks have succeeded, as any other.
    until(lambda: status(host, "two") == "DRAIN", 30)
    assert json.loads(host.check_output("curl -s http://127.0.0.1:6432/"))["server"] == "one"
