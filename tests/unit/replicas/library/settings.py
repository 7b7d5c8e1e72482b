"""A project as its developer wrote it: it knows of a second database of its own, and of no replica."""

SECRET_KEY = "of the developer's machine"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "library"]
MIDDLEWARE = [
    "library.site.write_at_the_end",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "library.site"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "TIME_ZONE": "Asia/Tokyo"}}
DATABASE_ROUTERS = ["library.site.OwnRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
