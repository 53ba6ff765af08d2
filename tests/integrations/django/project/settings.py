"""Settings as a careful project has them; ``ONEAI`` comes from the test."""

import json
import os

from project.databases import database

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
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "oneai_middleware.integrations.django",
    "project",
]
# Tables are made from the models: the tests need no history of them.
MIGRATION_MODULES = {"admin": None, "auth": None, "contenttypes": None, "sessions": None}

MIDDLEWARE = [
    "oneai_middleware.integrations.django.middleware.OneAIMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
if os.environ.get("PROJECT_INCLUDED") == "1":
    ROOT_URLCONF = "project.included"
    MIDDLEWARE = [*MIDDLEWARE[1:], "project.middleware.counting"]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
APPEND_SLASH = True
STATIC_URL = "/static/"
MEDIA_URL = "/media/"

place = os.environ.get("PROJECT_DATABASE", ":memory:")
DATABASES = {
    "default": {**database(place), "ATOMIC_REQUESTS": True},
    "other": {
        **database(":memory:" if "://" in place else f"{place}.other"),
        "ATOMIC_REQUESTS": True,
    },
}
DATABASE_ROUTERS = ["project.routers.Chosen"]

ONEAI = json.loads(os.environ.get("PROJECT_ONEAI", "{}"))
# What the setting ACCOUNTS is where keys and money are in memory.
SHOP_ACCOUNTS = json.loads(os.environ.get("PROJECT_ACCOUNTS", "{}"))
