#!/bin/sh
# A Django project in a directory of its repository; one of its applications is a submodule, its packages have hashes.
set -eu
git config --system --add safe.directory '*'
git config --system user.email ada@example.org
git config --system user.name Ada
git config --system init.defaultBranch main
git config --system protocol.file.allow always
rm -rf /srv/git /tmp/git
mkdir -p /srv/git /tmp/git/posts /tmp/git/blog/site/blog
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
git submodule --quiet add file:///srv/git/posts.git site/posts
git add . && git commit -q -m 'Blog' && git clone -q --bare . /srv/git/blog.git
