#!/bin/sh
# A Django project in a directory of its repository; one of its applications is a submodule, its packages have hashes.
# The repositories are read over SSH with a deploy key, and as plain files below /srv/lab/git.
set -eu
git config --system user.email ada@example.org
git config --system user.name Ada
git config --system init.defaultBranch main
rm -rf /srv/git /srv/lab/git /tmp/git
mkdir -p /srv/git /srv/lab/git /tmp/git/posts /tmp/git/blog/site/blog
cd /tmp/git/posts
git init -q
mkdir static
echo 'body { background: url("missing.png") }' >static/posts.css
touch __init__.py
printf 'from django.http import HttpResponse\n\n\ndef hello(request):\n    return HttpResponse("posts of " + request.get_host())\n' >views.py
git add . && git commit -q -m 'Posts' && git clone -q --bare . /srv/git/posts.git
cd /tmp/git/blog
git init -q
cat >site/manage.py <<'PY'
import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "blog.settings")
execute_from_command_line(sys.argv)
PY
touch site/blog/__init__.py
cat >site/blog/settings.py <<'PY'
SECRET_KEY = "development"
DEBUG = True
ROOT_URLCONF = "blog.urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.staticfiles", "posts"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/blog/shared/media/blog.sqlite3"}}
PY
cat >site/blog/urls.py <<'PY'
from django.urls import path
from posts.views import hello

urlpatterns = [path("", hello)]
PY
cat >site/blog/wsgi.py <<'PY'
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
PY
echo 'Django==5.2.19' | uv pip compile -q --generate-hashes --no-annotate --no-header - -o site/requirements.txt
git -c protocol.file.allow=always submodule --quiet add file:///srv/git/posts.git site/posts
# Relative to the repository's own address, as people write it who host both.
git config -f .gitmodules submodule.site/posts.url ../posts.git
git add . && git commit -q -m 'Blog'
git branch next && git checkout -q next
printf '\nNEXT = True\n' >>site/blog/settings.py
git commit -q -a -m 'Next' && git checkout -q main
git clone -q --bare . /srv/git/blog.git
for name in posts blog; do
    git clone -q --bare /srv/git/$name.git /srv/lab/git/$name.git
    git -C /srv/lab/git/$name.git update-server-info
done
ssh-keygen -q -t ed25519 -N '' -C deploy -f /root/deploy_key
useradd --system --home-dir /srv/git --shell "$(command -v git-shell)" git
mkdir -m 0755 /srv/git/.ssh
echo "restrict $(cat /root/deploy_key.pub)" >/srv/git/.ssh/authorized_keys
chown -R git:git /srv/git
sed 's/^/127.0.0.1 /; s/ [^ ]*$//' /etc/ssh/ssh_host_ed25519_key.pub >/root/known_hosts
