"""What the role promises, asked of the sites that the scenario deployed and of deploys that go wrong."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

SCENARIO = Path(__file__).resolve().parents[1]
SITES = ("shop", "blog", "talks")
GIVEN = {site: yaml.safe_load((SCENARIO / f"vars/{site}.yml").read_text()) for site in SITES}
PASSWORD = yaml.safe_load((SCENARIO / "vars/password.yml").read_text())["database_password"]


@pytest.fixture
def host(host: Any) -> Any:
    """The same host without Ansible in between: a command takes a tenth of the time."""
    return testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))


def live(host: Any, site: str) -> str:
    return str(host.check_output("basename $(readlink /srv/%s/current)", site))


def release(host: Any, site: str) -> dict[str, Any]:
    return dict(json.loads(host.file(f"/srv/{site}/current/RELEASE.json").content_string))


def log(host: Any, site: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.file(f"/srv/{site}/shared/deploys.log").content_string.splitlines()]


class Serving:
    """The live release behind its environment's own gunicorn, started as roles/gunicorn would: by systemd, as the service user."""

    def __init__(self, host: Any, site: str, wsgi: str) -> None:
        self.host, self.name, self.unit, self.socket = host, f"{site}.test", f"serve-{site}", f"/run/serve-{site}/web"
        home = host.check_output("readlink -f /srv/%s/current", site)
        words = [f"--unit={self.unit}", "--quiet", "--collect"]
        for line in (
            f"User={site}", f"EnvironmentFile=/srv/{site}/current-config/env", f"RuntimeDirectory={self.unit}",
            f"WorkingDirectory={release(host, site)['code']}", "Type=notify", "NotifyAccess=all",
        ):  # fmt: skip
            words += ["-p", line]
        command = [f"{home}/venv/bin/gunicorn", "-b", f"unix:{self.socket}", wsgi]
        done = host.run("systemd-run " + " ".join(["%s"] * len(words + command)), *words, *command)
        assert done.rc == 0, done.stderr + host.run("journalctl -n 40 -o cat -u %s", self.unit).stdout

    def get(self, path: str, *words: str, scheme: str = "https", name: str = "") -> tuple[int, str]:
        """(status, body) as nginx would ask: over HTTPS, by the site's name."""
        listed = [
            "-s", "--unix-socket", self.socket, "-H", f"X-Forwarded-Proto: {scheme}", "-w", "\n%{http_code}",
            *words, f"http://{name or self.name}{path}",
        ]  # fmt: skip
        body, status = self.host.check_output("curl " + " ".join(["%s"] * len(listed)), *listed).rsplit("\n", 1)
        return int(status), body

    def stop(self) -> None:
        self.host.run("systemctl stop %s", self.unit)


@pytest.fixture
def serving(host: Any) -> Iterator[Any]:
    started: list[Serving] = []

    def serve(site: str, wsgi: str) -> Serving:
        started.append(Serving(host, site, wsgi))
        return started[-1]

    yield serve
    for one in started:
        one.stop()


def test_project_from_a_directory_answers_with_its_database(host: Any, serving: Any) -> None:
    site = serving("shop", "shop.wsgi")
    status, body = site.get("/readyz")
    assert (status, json.loads(body)["release"]) == (200, live(host, "shop")), body
    host.check_output("shop-manage seed_shop --products 2")
    body = json.dumps({"customer": "Zoë", "items": [{"sku": "item-000001", "quantity": 1}]})
    status, answer = site.get(
        "/api/orders", "-d", body, "-H", "Content-Type: application/json", "-H", "Idempotency-Key: key-00001"
    )
    assert status in (200, 201), answer
    assert json.loads(site.get("/api/orders/key-00001")[1])["customer"] == "Zoë"
    assert site.get("/", scheme="http")[0] == 301
    assert site.get("/", name="elsewhere.test")[0] == 400


def test_project_from_a_repository_answers_with_its_submodule(host: Any, serving: Any) -> None:
    assert serving("blog", "blog.wsgi").get("/") == (200, "posts of blog.test")
    code = release(host, "blog")["code"]
    assert code.endswith("/code/site")
    assert host.run("find %s -name .git | grep .", code).rc == 1


def test_project_of_other_people_answers(host: Any, serving: Any) -> None:
    status, body = serving("talks", "pretalx.wsgi").get("/orga/login/")
    assert status == 200 and "<title>Sign in :: pretalx</title>" in body, body[:2000]
    sheets = re.findall(r"/static/(\S+\.[0-9a-f]{12}\.css)", body)
    assert sheets, "no style sheet has a hashed name"
    assert all(host.file(f"/srv/talks/shared/static/{name}").size for name in sheets)


def test_odd_values_reach_the_site_as_they_were_given(host: Any) -> None:
    code = (
        "import json, os; from django.conf import settings as s; "
        "print(json.dumps([s.SECRET_KEY, s.DATABASES['default']['PASSWORD'], os.environ['GREETING'], os.environ['PAYMENT_TOKEN']]))"
    )
    shop = GIVEN["shop"]
    wanted = [
        shop["django_secret_key"], PASSWORD, shop["django_environment"]["GREETING"],
        shop["django_secret_environment"]["PAYMENT_TOKEN"],
    ]  # fmt: skip
    assert json.loads(host.check_output("shop-manage shell -v 0 -c %s", code)) == wanted
    by_systemd = host.check_output(
        "systemd-run --quiet --wait --pipe -p User=shop -p EnvironmentFile=/srv/shop/current-config/env "
        "-p WorkingDirectory=/srv/shop/current/code /srv/shop/current/venv/bin/python manage.py shell -v 0 -c %s",
        code,
    )
    assert json.loads(by_systemd) == wanted
