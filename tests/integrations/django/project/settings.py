"""Settings as a careful project has them; ``ONEAI`` comes from the test."""

import json
import os

SECRET_KEY = "django-insecure-of-the-tests"
DEBUG = os.environ.get("PROJECT_DEBUG") == "1"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the others take their time
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
ASGI_APPLICATION = None
TIME_ZONE = "UTC"
USE_TZ = True
LOGGING_CONFIG = None
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "oneai_middleware.integrations.django",
    "project",
]
# Tables are made from the models: the tests need no history of them.
MIGRATION_MODULES = {"auth": None, "contenttypes": None, "sessions": None}

MIDDLEWARE = [
    "oneai_middleware.integrations.django.middleware.OneAIMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
APPEND_SLASH = True
STATIC_URL = "/static/"
MEDIA_URL = "/media/"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("PROJECT_DATABASE", ":memory:"),
        "ATOMIC_REQUESTS": True,
    },
    "other": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("PROJECT_DATABASE", ":memory:") + ".other",
    },
}

ONEAI = json.loads(os.environ.get("PROJECT_ONEAI", "{}"))
