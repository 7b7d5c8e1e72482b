"""What the role promises, asked of running sites: who gets what, who is refused, and what a change disturbs."""

import html
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
SHOP, BLOG = "shop.example.com", "blog.example.com"
CA, PEBBLE_ROOT = "/etc/stepladder/tls/ca.pem", "/run/pebble-root.pem"
PROXIES = 8444  # the port for load balancers
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
    resolve = [word for port in (80, 443, PROXIES) for word in ("--resolve", f"{name}:{port}:{address}")]
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
    headers = {}
    for line in lines:
        key, colon, value = line.partition(": ")
        if colon:
            # Twice the same header is as wrong as a wrong one, so both are kept.
            headers[key.lower()] = ", ".join(filter(None, (headers.get(key.lower()), value)))
    body = host.run("cat /run/body").stdout_bytes.decode("utf-8", "replace")
    return Answer(0, int(status), version, headers, body)


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


def play(playbook, *words, **variables):
    """Run a play of the scenario again: {rc, changed, calls (remote ones), words (all messages)}."""
    environment = {
        **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
    }
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], SCENARIO / playbook]
    command += ["-e", json.dumps(variables), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=SCENARIO.parents[1], env=environment
    )
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [
        {**result, "action": result.get("action", "").split(".")[-1], "name": task["task"]["name"]}
        for each in report["plays"]
        for task in each["tasks"]
        for result in task["hosts"].values()
    ]
    return {
        "rc": done.returncode,
        "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "calls": [r["name"] for r in results if r["action"] not in LOCAL and not r.get("skipped")],
        "words": " ".join(str(r.get("msg", "")) for r in results),
        "output": done.stdout + done.stderr,
    }


def apply(playbook="shop.yml", **variables):
    done = play(playbook, **variables)
    assert done["rc"] == 0, done["words"]
    return done


@pytest.fixture
def shop_afterwards(host):
    """The shop is brought back to what the scenario began with."""
    yield
    apply("shop.yml")


def log(host, site="shop"):
    """The lines of a site's log, each of which must be JSON in UTF-8."""
    time.sleep(0.2)
    raw = host.run(f"cat /var/log/nginx/{site}-access.log").stdout_bytes
    return [json.loads(line.decode("utf-8")) for line in raw.splitlines()]


def soon(found):
    """What `found` gives, asked until it gives something, for ten seconds."""
    deadline = time.monotonic() + 10
    while not (value := found()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return value


def processes(host):
    """nginx's master and workers."""
    return host.run("systemctl show -P MainPID nginx; pgrep -P $(systemctl show -P MainPID nginx)").stdout.split()


def served_certificate(host, name):
    return host.run(
        f"echo | openssl s_client -connect 127.0.0.1:443 -servername {name} 2>/dev/null | openssl x509 -noout -fingerprint"
    ).stdout.strip()


def test_old_tls_is_refused_by_the_server(host):
    """The client is made to accept it, so that the refusal is nginx's."""
    shake = "echo | openssl s_client -connect 127.0.0.1:443 -servername shop.example.com -cipher DEFAULT@SECLEVEL=0"
    old = host.run(f"{shake} -tls1_1 2>&1").stdout
    assert "alert protocol version" in old
    for version in ("1.2", "1.3"):
        assert f"TLSv{version}, Cipher is " in host.run(f"{shake} -tls{version.replace('.', '_')} 2>&1").stdout


def test_http2_is_negotiated_by_those_who_can(host):
    for name, ca in ((SHOP, CA), (BLOG, pebble_root(host))):
        assert ask(host, "/", "--http2", name=name, ca=ca).version == "2"
    assert ask(host, "/", "--http1.1").version == "1.1"


def test_hashed_static_file_is_cached_for_a_year_and_another_for_five_minutes(host):
    year, minutes = "public, max-age=31536000, immutable", "public, max-age=300, must-revalidate"
    for path, caching in ((HASHED, year), ("/static/logo.svg", minutes), ("/static/jquery.min.js", minutes)):
        answer = ask(host, path)
        assert (answer.status, answer.headers["cache-control"]) == (200, caching), path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["strict-transport-security"] == "max-age=3600"
        again = ask(host, path, "-H", f"If-None-Match: {answer.headers['etag']}")
        assert again.status == 304
    assert "cache-control" not in ask(host, "/static/none.0123456789ab.css").headers


def test_text_is_compressed_for_those_who_accept_it(host):
    for path in (HASHED, "/static/logo.svg"):
        packed = ask(host, path, "-H", "Accept-Encoding: gzip")
        assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
        assert "content-encoding" not in ask(host, path).headers
        unpacked = ask(host, path, "--compressed", "-H", "Accept-Encoding: gzip")
        assert unpacked.text == ask(host, path).text
    assert ask(host, "/static/words.txt").headers["content-type"] == "text/plain; charset=utf-8"
    # Packed beforehand: sent as it is.
    assert ask(host, "/static/packed.0123456789ab.js", "--compressed").text == "packed beforehand"


def test_names_that_begin_with_a_dot_are_not_there(host):
    for path in ("/.env", "/.git/config", "/a/.htaccess", "/static/.secret", "/media/.git/config", "/static/../.env"):
        assert ask(host, path).status == 404, path
    assert ask(host, "/.well-known/security.txt").told["host"] == SHOP
    assert ask(host, "/static../shop/media/cat.png").told, "what only begins like the static path is the application's"


def test_uploaded_page_is_a_download_and_a_picture_is_shown(host):
    page = ask(host, "/media/page.html")
    assert page.headers["content-disposition"] == "attachment"
    assert ask(host, "/media/drawing.svg").headers["content-disposition"] == "attachment"
    picture = ask(host, "/media/cat.png")
    assert picture.headers["content-disposition"] == "inline"
    for answer in (page, picture):
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_link_among_uploaded_files_leads_to_nothing_of_another_owner(host):
    host.run("ln -sfn cat.png /srv/shop/media/kitten.png; chown -h games /srv/shop/media/kitten.png")
    host.run("ln -sfn cat.png /srv/shop/media/puss.png")
    assert ask(host, "/media/kitten.png").status == 403
    assert ask(host, "/media/puss.png").status == 200


SAME = ("cache-control", "x-content-type-options", "content-security-policy", "content-disposition", "content-type", "etag",
        "last-modified", "accept-ranges", "content-length")  # fmt: skip


def test_files_of_another_host_are_given_as_ones_own(host):
    root = pebble_root(host)
    for name in ("page.html", "cat.png", "drawing.svg"):
        own, proxied = ask(host, f"/media/{name}"), ask(host, f"/files/{name}", name=BLOG, ca=root)
        assert (proxied.status, proxied.text) == (200, own.text)
        assert {key: proxied.headers.get(key) for key in SAME} == {key: own.headers.get(key) for key in SAME}
        assert re.fullmatch("[0-9a-f]{32}", proxied.headers["x-request-id"]), "one, and its own"
    etag = ask(host, "/files/cat.png", name=BLOG, ca=root).headers["etag"]
    assert ask(host, "/files/cat.png", "-H", f"If-None-Match: {etag}", name=BLOG, ca=root).status == 304
    assert ask(host, "/files/cat.png", "-r", "1-", name=BLOG, ca=root).text == "ng"
    for path in ("/files/none.png", "/files/.git/config", "/files/../.env", "/files/%2e%2e/static/.secret"):
        assert ask(host, path, name=BLOG, ca=root).status == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert ask(host, "/files/cat.png", "-X", method, name=BLOG, ca=root).status == 405
    assert ask(host, "/media/cat.png", name=BLOG, ca=root).headers["content-type"] == "application/json", (
        "the application's"
    )


def test_other_hosts_certificate_must_have_the_name_and_the_authority(host):
    root = pebble_root(host)
    proxy = {"url": "https://127.0.0.1:8443/media/", "name": SHOP, "ca": CA}
    try:
        for wrong in ({"name": BLOG}, {"ca": "/etc/ssl/certs/ca-certificates.crt"}):
            apply("blog.yml", nginx_media_proxy={**proxy, **wrong})
            assert ask(host, "/files/cat.png", name=BLOG, ca=root).status == 502, wrong
    finally:
        apply("blog.yml")
    assert ask(host, "/files/cat.png", name=BLOG, ca=root).status == 200


def knock(host, path, *options, port=8443):
    """The answer of the private door."""
    words = ["curl", "-sS", "--path-as-is", "-m", "10", "-o", "/run/body", "-w", "%{http_code}", "--cacert", CA]
    words += ["--resolve", f"{SHOP}:{port}:127.0.0.1", *options, f"https://{SHOP}:{port}{path}"]
    done = host.run(" ".join(["%s"] * len(words)), *words)
    return Answer(done.rc, int(done.stdout or 0), text=host.run("cat /run/body").stdout)


def test_private_door_lets_in_who_is_listed_and_nobody_else(host):
    for address, status in (("127.0.0.1", 200), ("127.0.0.4", 200), ("127.0.0.2", 403), ("127.0.0.3", 403)):
        assert knock(host, "/media/cat.png", "--interface", address).status == status, address
        assert knock(host, "/.service/a", "--interface", address).status == status, address
    forged = ("--interface", "127.0.0.2", "-H", "X-Forwarded-For: 127.0.0.1", "-H", "X-Real-IP: 127.0.0.1")
    assert knock(host, "/media/cat.png", *forged).status == 403, "nor whom a trusted proxy vouches for"
    assert knock(host, "/media/cat.png", "--cacert", "/etc/ssl/certs/ca-certificates.crt").code == NOT_TRUSTED


def test_private_door_leads_to_its_locations_only(host):
    for path in ("/", HASHED, "/healthz", "/admin/", "/media/.git/config", "/media/../static/.secret"):
        assert knock(host, path).status == 404, path
    assert json.loads(knock(host, "/.service/a/b%20c?d=e").text)["path"] == "/a/b%20c?d=e"
    assert ask(host, "/.service/a").status == 404, "not at the front door"
    host.run("head -c 2097152 /dev/zero > /run/fits; head -c 2097153 /dev/zero > /run/large")
    assert json.loads(knock(host, "/.service/put", "--data-binary", "@/run/fits").text)["length"] == 2097152
    assert knock(host, "/.service/put-large", "--data-binary", "@/run/large").status == 413
    assert "/put-large" not in host.file("/run/app/requests").content_string


def test_private_door_is_open_during_maintenance_and_has_no_limit_per_client(host, shop_afterwards):
    apply("maintenance.yml", nginx_maintenance=True)
    try:
        assert ask(host, "/media/cat.png").status == 503
        assert knock(host, "/media/cat.png").status == knock(host, "/.service/a").status == 200
    finally:
        apply("maintenance.yml", nginx_maintenance=False)
    apply("shop.yml", nginx_connections_per_client=2)
    url = f"https://{SHOP}:8443/.service/slow"
    found = host.run(
        f"curl -s --cacert {CA} --resolve {SHOP}:8443:127.0.0.1 --parallel --parallel-immediate -w '%{{http_code}}\n'"
        + f" -o /dev/null {url}" * 5
    ).stdout.split()
    assert found == ["200"] * 5


def test_request_id_reaches_application_client_and_log(host):
    answer = ask(host, "/with-id")
    given = answer.told["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", given)
    assert answer.headers["x-request-id"] == given
    [line] = [line for line in log(host) if line["uri"] == "/with-id"][-1:]
    assert line["request_id"] == given
    assert ask(host, "/with-id").told["x-request-id"] != given


FORGED = {
    "X-Request-ID": "forged-1",
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "evil.example.com",
    "X-Forwarded-Port": "81",
    "X-Real-IP": "192.0.2.8",
    "Forwarded": "for=192.0.2.9",
    "Proxy": "http://192.0.2.10",
}
FORGERY = [word for name, value in FORGED.items() for word in ("-H", f"{name}: {value}")]


def test_forged_headers_of_a_stranger_are_not_believed(host):
    answer = ask(host, "/forged", *FORGERY)
    assert not set(FORGED.values()) & set(answer.told.values())
    assert answer.told["x-forwarded-for"] == answer.told["x-real-ip"] == "127.0.0.1"
    assert answer.told["x-forwarded-proto"] == "https"
    assert answer.headers["x-request-id"] != "forged-1"
    assert [line["client"] for line in log(host) if line["uri"] == "/forged"][-1] == "127.0.0.1"


def test_trusted_proxy_is_believed_about_client_scheme_and_id(host):
    proxied = ask(host, "/proxied", "--interface", "127.0.0.2", *FORGERY)
    assert proxied.told["x-forwarded-for"] == proxied.told["x-real-ip"] == "192.0.2.7"
    assert proxied.told["x-forwarded-proto"] == "http"
    assert proxied.told["x-request-id"] == proxied.headers["x-request-id"] == "forged-1"
    assert not {"x-forwarded-host", "x-forwarded-port", "forwarded", "proxy"} & set(proxied.told)
    line = [line for line in log(host) if line["uri"] == "/proxied"][-1]
    assert (line["client"], line["request_id"]) == ("192.0.2.7", "forged-1")
    # Even its id must be one that a log can take, and its word counts for the last hop only.
    odd = ask(host, "/", "--interface", "127.0.0.2", "-H", 'X-Request-ID: a"b c')
    assert re.fullmatch("[0-9a-f]{32}", odd.told["x-request-id"])
    chain = ask(host, "/", "--interface", "127.0.0.2", "-H", "X-Forwarded-For: 192.0.2.1, 198.51.100.4")
    assert chain.told["x-forwarded-for"] == "198.51.100.4"


def test_load_balancers_have_a_port_with_the_same_site(host):
    assert ask(host, f":{PROXIES}/x").told["host"] == SHOP
    assert ask(host, f":{PROXIES}{HASHED}").status == 200
    assert ask(host, f":{PROXIES}/x", ca="/etc/ssl/certs/ca-certificates.crt").code == NOT_TRUSTED
    assert ask(host, f":{PROXIES}/", "-k", name="other.example.com").code == NO_HANDSHAKE
    found = ask(host, f":{PROXIES}/x", "--interface", "127.0.0.2", "-H", "X-Forwarded-For: 192.0.2.7")
    assert found.told["x-real-ip"] == "192.0.2.7"


def test_load_balancers_questions_count_against_no_limit_and_a_strangers_do(host):
    def asked(source):
        time.sleep(2.5)
        return host.run(
            f"curl -sk -w '%{{http_code}}\n' --interface {source} --resolve {BLOG}:443:127.0.0.1"
            + f" -o /dev/null https://{BLOG}/readyz" * 12
        ).stdout.split()

    assert set(asked("127.0.0.2")) == {"200"}
    assert "429" in asked("127.0.0.4")


def test_too_large_a_body_never_reaches_the_application(host):
    host.run("head -c 1048576 /dev/zero > /run/fits; head -c 1048577 /dev/zero > /run/large")
    assert json.loads(ask(host, "/upload-fits", "--data-binary", "@/run/fits").text)["length"] == 1048576
    assert ask(host, "/upload-large", "--data-binary", "@/run/large").status == 413
    chunked = ("-H", "Transfer-Encoding: chunked", "--http1.1", "--data-binary", "@/run/large")
    assert ask(host, "/upload-chunked", *chunked).status == 413
    reached = host.file("/run/app/requests").content_string
    assert "/upload-fits" in reached
    assert "/upload-large" not in reached
    assert "/upload-chunked" not in reached


def test_only_websocket_may_change_the_protocol(host):
    asked = ("--http1.1", "-m", "3", "-H", "Connection: Upgrade")
    told = ask(host, "/", *asked, "-H", "Upgrade: websocket").told
    assert (told["upgrade"], told["connection"]) == ("websocket", "upgrade")
    told = ask(host, "/", *asked, "-H", "Upgrade: h2c").told
    assert "upgrade" not in told
    assert told["connection"] == "close"


def test_answer_with_long_headers_gets_through(host):
    assert ask(host, "/cookies").status == 200


def test_applications_own_503_is_its_own(host):
    assert ask(host, "/broken").told["host"] == SHOP


def test_rate_over_the_limit_is_answered_with_429(host):
    root = pebble_root(host)
    time.sleep(2.5)
    many = host.run(
        "curl -s -o /dev/null -w '%%{http_code}\\n' --cacert %s --resolve %s 'https://blog.example.com/[1-12]'",
        root, f"{BLOG}:443:127.0.0.1",
    ).stdout.split()  # fmt: skip
    assert many[:4] == ["200"] * 4, many
    assert set(many) == {"200", "429"}
    assert many.count("429") >= 6
    # The shop has no such limit.
    assert {ask(host, f"/{number}").status for number in range(12)} == {200}


ODD = ['quote " and \\ backslash', "tab\tinside", "grüße 🐘", "<script>", "'", "{}", "$host"]


def test_log_is_json_whatever_clients_send(host):
    for agent in ODD:
        ask(host, "/odd", "-A", agent)
    assert [line["agent"] for line in log(host) if line["uri"] == "/odd"][-len(ODD) :] == ODD
    # Bytes that are no UTF-8, in every place that is a client's to fill.
    host.run(
        "printf 'GET /latin\\351?q=\\377 HTTP/1.1\\r\\nHost: shop.example.com\\r\\nUser-Agent: caf\\351\\r\\n"
        "Referer: \\300\\200\\r\\nConnection: close\\r\\n\\r\\n'"
        " | openssl s_client -quiet -ign_eof -connect 127.0.0.1:443 -servername shop.example.com 2>/dev/null"
    )
    line = log(host)[-1]
    assert {line["uri"], line["agent"], line["referer"]} == {"(not UTF-8)"}
    assert line["status"] == 200
    # A request of HTTP/0.9, and one that ends in the middle.
    shake = "openssl s_client -quiet -connect 127.0.0.1:443 -servername shop.example.com 2>/dev/null"
    host.run(f"printf 'GET /old\\r\\n' | {shake}; printf 'POST / HTTP/1.1\\r\\nHost: shop.exa' | {shake}")
    log(host)


def test_log_tells_how_long_each_part_took(host):
    ask(host, "/slow")
    line = [line for line in log(host) if line["uri"] == "/slow"][-1]
    assert 3 <= line["upstream_seconds"] <= line["seconds"] + 0.01 < 6
    assert line["upstream_first_byte_seconds"] >= 3
    assert 0 <= line["upstream_connect_seconds"] < 1
    assert 0 <= line["queue_seconds"] < 2
    assert (line["status"], line["upstream_status"], line["method"], line["tls"]) == (200, 200, "GET", "TLSv1.3")
    ask(host, HASHED)
    static = log(host)[-1]
    assert (static["uri"], static["upstream_seconds"], static["queue_seconds"]) == (HASHED, None, None)
    assert "x-queue-seconds" not in ask(host, "/").headers


def test_log_is_not_for_everyone_and_goes_on_after_its_rotation(host):
    for name in ("shop-access", "shop-error", "my-blog-access"):
        file = host.file(f"/var/log/nginx/{name}.log")
        assert (file.mode, file.group) == (0o640, "adm"), name
    done = host.run("logrotate -f /etc/logrotate.d/nginx")
    assert done.rc == 0, done.stderr
    time.sleep(1)
    ask(host, "/after-rotation")
    assert [line["uri"] for line in log(host)] == ["/after-rotation"]


def test_counters_are_for_the_host_alone(host):
    assert "Active connections" in host.run("curl -s http://127.0.0.1:8099/status").stdout
    own = host.run("hostname -I").stdout.split()[0]
    assert host.run(f"curl -s -m 3 http://{own}:8099/status").rc != 0


def test_maintenance_page_is_switched_without_a_reload(host):
    before = processes(host)
    message = """Back at 10 o'clock – 100% <b>"sure"</b> & $host"""
    closing = {"nginx_maintenance": True, "nginx_maintenance_message": message}
    try:
        apply("maintenance.yml", **closing)
        closed = ask(host, "/")
        assert closed.status == 503
        shown = re.search("<p>(.*)</p>", closed.text)[1]
        assert "<" not in shown and html.unescape(shown) == message
        assert closed.headers["content-type"].startswith("text/html")
        assert (closed.headers["retry-after"], closed.headers["cache-control"]) == ("300", "no-store")
        assert ask(host, "/cart", "-d", "a=b").status == 503
        assert ask(host, HASHED).status == 503
        assert "<html" not in ask(host, "/healthz").text
        assert ask(host, "/healthz").status == 200
        assert ask(host, "/healthz/x").status == 503
        assert ask(host, "/", "--interface", "127.0.0.3").status == 200
        assert ask(host, "/", scheme="http").status == 301
        assert ask(host, "/", name=BLOG, ca=pebble_root(host)).status == 200, "the other site stays open"
        assert apply("shop.yml")["changed"] == 0, "a run of the role leaves the page as it is"
        assert ask(host, "/").status == 503
        assert apply("maintenance.yml", **closing)["changed"] == 0
    finally:
        opened = play("maintenance.yml", nginx_maintenance=False)
    assert (opened["rc"], opened["changed"]) == (0, 1)
    assert ask(host, "/").status == 200
    assert ask(host, "/.stepladder-maintenance.html").status == 404
    assert processes(host) == before


def test_refused_configuration_changes_nothing_and_the_old_one_keeps_serving(host):
    before, files = processes(host), host.run("cat /etc/nginx/sites-enabled/* /etc/nginx/*.conf").stdout
    done = play("shop.yml", nginx_extra="nonsense on;", nginx_worker_connections=1000)
    assert done["rc"] != 0
    assert 'unknown directive "nonsense"' in done["words"] and "put back as it was" in done["words"]
    assert host.run("cat /etc/nginx/sites-enabled/* /etc/nginx/*.conf").stdout == files
    assert ask(host, "/").status == 200
    assert host.run("nginx -t").rc == 0
    assert processes(host) == before


def test_configuration_that_cannot_take_effect_is_put_back(host):
    """nginx -t accepts a port that another program has; nginx's own reload would end well."""
    before, files = processes(host), host.run("cat /etc/nginx/nginx.conf").stdout
    host.run("systemd-run --unit=squatter python3 -m http.server --bind 127.0.0.1 8100")
    try:
        done = play("shop.yml", nginx_status_port=8100)
    finally:
        host.run("systemctl stop squatter")
    assert done["rc"] != 0
    assert "127.0.0.1:8100 failed" in done["words"] and "nginx keeps its old configuration" in done["words"]
    assert host.run("cat /etc/nginx/nginx.conf").stdout == files
    assert processes(host) == before
    assert ask(host, "/").status == 200


def test_reload_by_hand_refuses_a_broken_configuration(host):
    before = processes(host)
    host.run("echo nonsense > /etc/nginx/conf.d/broken.conf")
    try:
        assert host.run("systemctl reload nginx").rc != 0
    finally:
        host.run("rm /etc/nginx/conf.d/broken.conf")
    assert processes(host) == before
    assert host.run("systemctl reload nginx").rc == 0
    assert processes(host) != before


def test_run_without_a_change_touches_nothing(host):
    before = processes(host)
    for playbook, calls in (("shop.yml", 3), ("blog.yml", 5)):
        done = apply(playbook)
        assert (done["changed"], len(done["calls"])) == (0, calls), done["calls"]
    assert processes(host) == before


def test_reload_drops_no_request_under_way(host, shop_afterwards):
    master, *workers = processes(host)
    host.run("touch /run/app/hold")
    host.run(
        f"(setsid curl -s -o /run/held -w '%{{http_code}}' --cacert {CA} --resolve {SHOP}:443:127.0.0.1 https://{SHOP}/held"
        " > /run/held.status 2>&1 &)"
    )
    try:
        assert soon(lambda: "/held" in host.file("/run/app/requests").content_string)
        apply("shop.yml", nginx_extra="add_header X-New yes;")
        assert ask(host, "/").headers["x-new"] == "yes"
        time.sleep(2)
        assert host.file("/run/held.status").content_string == "", "it is still under way"
    finally:
        host.run("rm /run/app/hold")
    assert soon(lambda: host.file("/run/held.status").content_string) == "200"
    assert processes(host)[0] == master, "reloaded, not restarted"
    assert soon(lambda: not set(processes(host)[1:]) & set(workers))


def test_load_balancer_is_told_whether_the_application_was_reached(host):
    """425 is sent on to another host, an order too; 502 is not: the application may have begun it."""
    trusted = ["--interface", "127.0.0.2"]
    host.run("mv /run/app/live.sock /run/app/away.sock")
    try:
        assert (ask(host, "/x", *trusted).status, ask(host, "/x").status) == (425, 502)
        assert ask(host, "/x", *trusted, "-X", "POST", "-d", "an order").status == 425
    finally:
        host.run("mv /run/app/away.sock /run/app/live.sock")
    assert ask(host, "/dies", *trusted).status == 502


def test_restart_is_announced_before_and_after(host, shop_afterwards):
    host.run("rm -f /run/noted")
    hook = str(SCENARIO / "files/note.yml")
    apply("shop.yml", nginx_before_restart=hook, nginx_after_restart=hook, nginx_hsts_seconds=10)
    assert not host.file("/run/noted").exists, "a reload needs no announcement"
    host.run("sed -i s/^Restart=.*/Restart=no/ /etc/systemd/system/nginx.service.d/stepladder.conf")
    old = processes(host)[0]
    apply("shop.yml", nginx_before_restart=hook, nginx_after_restart=hook)
    assert [int(pid) for pid in host.file("/run/noted").content_string.split()] == [int(old), int(processes(host)[0])]


def test_watch_fails_when_too_many_answers_are_errors(host):
    def watched(path):
        host.run(
            f"(setsid sh -c 'for n in $(seq 60); do curl -sk -o /dev/null --resolve {SHOP}:443:127.0.0.1"
            f" https://{SHOP}{path}; sleep 0.2; done' > /dev/null 2>&1 &)"
        )
        try:
            return play("watch.yml", nginx_watch_seconds=6)
        finally:
            host.run("pkill -f 'sh -c for n in'")

    done = watched("/broken")
    assert done["rc"] != 0
    assert re.search(
        r"\d+ of \d+ requests failed in the application within 6 seconds, for example GET /broken: 503", done["words"]
    )
    assert watched("/fine")["rc"] == 0


def test_check_mode_tells_what_would_change_and_changes_nothing(host):
    before = processes(host)
    done = play("shop.yml", "--check", "--diff", nginx_hsts_seconds=7200)
    assert (done["rc"], done["changed"]) == (0, 1), done["words"]
    assert "max-age=7200" in done["output"]
    assert ask(host, "/").headers["strict-transport-security"] == "max-age=3600"
    assert processes(host) == before


def test_connections_over_the_limit_are_answered_with_429(host, shop_afterwards):
    apply("shop.yml", nginx_connections_per_client=2)
    url = f"https://{SHOP}/slow"
    found = host.run(
        f"curl -s --cacert {CA} --resolve {SHOP}:443:127.0.0.1 --http1.1 --parallel --parallel-immediate -w '%{{http_code}}\n'"
        + f" -o /dev/null {url}" * 5
    ).stdout.split()
    assert sorted(found) == ["200", "200", "429", "429", "429"]


def certificate(folder, name):
    """A certificate and its key of our own making, as a person has them on the controller."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return {"nginx_tls": "files", "nginx_tls_certificate": f"{folder}/cert.pem", "nginx_tls_key": f"{folder}/key.pem"}


def test_own_files_are_shipped_and_their_change_is_served(host, shop_afterwards, tmp_path):
    before = processes(host)[0]
    seen = {served_certificate(host, SHOP)}
    for count in (2, 3):
        own = certificate(tmp_path, SHOP)
        done = play("shop.yml", "--diff", **own)
        assert done["rc"] == 0, done["words"]
        assert "PRIVATE" not in done["output"]
        seen.add(served_certificate(host, SHOP))
        assert len(seen) == count
    assert apply("shop.yml", **own)["changed"] == 0
    key = host.file("/etc/nginx/stepladder/shop/key.pem")
    assert (key.mode, key.user) == (0o600, "root")
    assert processes(host)[0] == before, "reloaded, not restarted"


def pebble_root(host):
    """The root of Pebble's CA, fetched at its own door, which the scenario's CA vouches for."""
    done = host.run("curl -sS --cacert %s -o %s https://localhost:15000/roots/0", CA, PEBBLE_ROOT)
    assert done.rc == 0, done.stderr
    return PEBBLE_ROOT


def test_certificate_of_the_acme_server_is_served_with_its_chain(host):
    assert ask(host, "/", name=BLOG, ca=pebble_root(host)).status == 200
    assert ask(host, "/", name=BLOG, ca=CA).code == NOT_TRUSTED
    assert host.file("/etc/nginx/stepladder/my-blog/key.pem").linked_to.startswith("/etc/letsencrypt/archive/my-blog/")
    assert host.run("systemctl is-enabled certbot.timer").stdout.strip() == "enabled"
    assert host.run("systemctl is-active certbot.timer").stdout.strip() == "active"
    assert f"REQUESTS_CA_BUNDLE={CA}" in host.run("systemctl show -P Environment certbot.service").stdout


RENEWAL = "/etc/letsencrypt/renewal/my-blog.conf"


def test_certbots_own_timer_renews_and_nginx_serves_the_new_certificate(host):
    root, old, master = pebble_root(host), served_certificate(host, BLOG), processes(host)[0]
    assert host.run("systemctl start certbot.service").rc == 0
    assert served_certificate(host, BLOG) == old, "not due yet"
    host.run(f"cp -p {RENEWAL} /run/renewal; sed -i '1i renew_before_expiry = 3000 days' {RENEWAL}")
    try:
        done = host.run("systemctl start certbot.service")
        assert done.rc == 0, host.run("journalctl -u certbot --no-pager -n 30").stdout
        assert served_certificate(host, BLOG) != old
        assert ask(host, "/", name=BLOG, ca=root).status == 200
        assert processes(host)[0] == master, "reloaded, not restarted"
    finally:
        host.run(f"sed -i '/^renew_before_expiry = 3000/d' {RENEWAL}")
    assert apply("blog.yml")["changed"] == 0


def test_another_acme_server_or_another_name_is_a_new_certificate(host):
    first = served_certificate(host, BLOG)
    done = apply("blog.yml", nginx_acme_directory_url="https://127.0.0.1:14000/dir")
    second = served_certificate(host, BLOG)
    assert done["changed"] > 0 and second != first
    more = {"nginx_server_names": [BLOG, "notes.example.com"]}
    apply("blog.yml", **more)
    assert ask(host, "/", name="notes.example.com", ca=pebble_root(host)).status == 200
    apply("blog.yml")


def test_refusal_of_the_acme_server_is_said_and_the_site_goes_on(host):
    """The second name leads nowhere, as before its DNS record is made."""
    lost = """curl -sS -d '{"host": "lost.example.com"}' http://127.0.0.1:8055/%s-servfail"""
    host.run(lost.replace("%s", "set"))
    before = served_certificate(host, BLOG)
    try:
        done = play("blog.yml", nginx_server_names=[BLOG, "lost.example.com"])
        assert done["rc"] != 0
        assert "gave no certificate for blog.example.com, lost.example.com" in done["words"]
        assert "Domain: lost.example.com" in done["words"]
        assert served_certificate(host, BLOG) == before
        assert ask(host, "/", name=BLOG, ca=pebble_root(host)).status == 200
    finally:
        host.run(lost.replace("%s", "clear"))
        apply("blog.yml")


def test_load_balancer_gets_a_certificate_for_names_that_still_lead_here(host):
    """certbot on another port stands for the load balancer's; the ACME server asks this nginx for the proof."""
    order = (
        f"REQUESTS_CA_BUNDLE={CA} certbot certonly --standalone --http-01-port 8097 --non-interactive --agree-tos"
        f" --register-unsafely-without-email --server https://localhost:14000/dir -d {BLOG}"
        " --config-dir /run/balancer/etc --work-dir /run/balancer/work --logs-dir /run/balancer/logs"
    )
    refused = host.run(order)
    assert refused.rc != 0 and "failed to authenticate" in refused.stdout + refused.stderr, "the proof is not passed on"
    apply("blog.yml", nginx_acme_forward="127.0.0.1:8097")
    try:
        done = host.run(order)
        assert done.rc == 0, done.stdout + done.stderr
        assert host.file(f"/run/balancer/etc/live/{BLOG}/fullchain.pem").exists
    finally:
        host.run("rm -rf /run/balancer")
        apply("blog.yml")


def test_interrupted_change_of_the_certificate_is_made_up_for(host):
    """certbot's hook did not run: the site is back at its first certificate."""
    good, folder = served_certificate(host, BLOG), "/etc/nginx/stepladder/my-blog"
    host.run(f"cd {folder}; ln -sfn first-cert.pem cert.pem; ln -sfn first-key.pem key.pem; systemctl reload nginx")
    assert served_certificate(host, BLOG) != good
    assert apply("blog.yml")["changed"] == 1
    assert served_certificate(host, BLOG) == good


def test_service_sees_a_read_only_system_and_nobodys_home(host):
    pid = processes(host)[0]
    inside = f"nsenter -t {pid} -m --"
    for place in ("/etc/nginx", "/srv/shop/static", "/usr/bin", "/var/lib/stepladder"):
        assert "Read-only" in host.run(f"{inside} touch {place}/x").stderr
    host.run("touch /home/x")
    assert host.run(f"{inside} ls -A /home").stdout == ""
    status = host.file(f"/proc/{pid}/status").content_string
    assert re.search(r"NoNewPrivs:\s*1", status) and re.search(r"Seccomp:\s*2", status)
    exposure = host.run("systemd-analyze security --no-pager nginx.service | tail -1").stdout
    assert float(re.search(r"([0-9.]+) OK", exposure)[1]) <= 2.6, exposure


def test_killed_master_comes_back(host):
    host.run("kill -9 $(systemctl show -P MainPID nginx)")
    for _ in range(50):
        if ask(host, "/").status == 200:
            return
        time.sleep(0.2)
    pytest.fail(host.run("systemctl status nginx; journalctl -u nginx -n 20 --no-pager").stdout)


WRONG = {
    "nginx_name": ("Shop", "nginx_name is Shop. Use small letters"),
    "nginx_server_names": (["https://shop.example.com"], "List the host names"),
    "nginx_upstream_socket": ("127.0.0.1:8000", "Set it to the path of the application's socket."),
    "nginx_tls_key": ("", "nginx_tls_certificate or nginx_tls_key is empty"),
    "nginx_static_url": ("static", "Both begin and end with a slash."),
    "nginx_media_directory": ("/srv/a b", "Both are absolute paths"),
    "nginx_health_path": ("/healthz?a=b", "Set it to a path without a query"),
    "nginx_media_proxy": ({"url": "http://192.0.2.1/media/", "name": "192.0.2.1", "ca": "/ca.pem"}, "Set all of url"),
    "nginx_maintenance_bypass": (
        ["192.0.2.7", "2001:db8::/32", "10.0.0.x", "10.0.0.0/33"],
        "nginx_maintenance_bypass has 10.0.0.x, 10.0.0.0/33, which is not an address or network.",
    ),
    "nginx_private": (
        {"port": 443, "from": [], "certificate": "/c.pem", "key": "/k.pem", "locations": [{"path": "/a"}]},
        "Set port (none of 80, 443 and 8099)",
    ),
}


def test_settings_that_cannot_work_are_all_refused_at_once(host):
    done = play("shop.yml", **{name: value for name, (value, _) in WRONG.items()})
    assert (done["rc"] != 0, done["changed"]) == (True, 0)
    assert done["words"].count("nginx changed nothing.") == 1
    for _, words in WRONG.values():
        assert words in done["words"]


def test_settings_that_do_not_fit_to_each_other_are_refused(host):
    done = play("shop.yml", nginx_tls="files", nginx_tls_certificate="/none.pem", nginx_media_url="/static/")
    assert "is not a file on the controller" in done["words"]
    assert "are both /static/" in done["words"]
    for location in (
        {"path": "/x/"},
        {"socket": "/s"},
        {"path": "/media/", "socket": "/s"},
        {"path": "/x", "socket": "/s"},
    ):
        private = {"port": 8443, "from": ["::1"], "certificate": "/c", "key": "/k", "locations": [location]}
        assert "nginx_private.locations has" in play("shop.yml", nginx_private=private)["words"], location
    done = play("blog.yml", nginx_server_names=["*.example.com"])
    assert (done["rc"] != 0, done["changed"]) == (True, 0)
    assert "cannot prove" in done["words"]
