SECRET_KEY = "development"
DEBUG = True
ROOT_URLCONF = "notes.urls"
INSTALLED_APPS = ["notes"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
DATABASES = {}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
