"""A Django shop that sells an AI API to its own users; ``README.md`` says how to run it.

Users, keys and money are all in the project's own database. With ``DEEPSEEK_API_KEY`` in the
environment DeepSeek's models are sold as well.
"""

import os
from pathlib import Path

import django
from django.core.exceptions import ImproperlyConfigured


def secret(variable: str) -> str:
    """What an environment variable holds, which everything here rests on."""
    value = os.environ.get(variable, "")
    if len(value) < 16:
        raise ImproperlyConfigured(
            f"set {variable} to a secret of 16 characters or more, such as "
            "`openssl rand -hex 32` prints"
        )
    return value


BASE_DIR = Path(__file__).parents[1]
SECRET_KEY = secret("SHOP_SECRET_KEY")
PAYMENT_SECRET = secret("SHOP_PAYMENT_SECRET")

DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASE = os.environ.get("SHOP_DATABASE") or str(BASE_DIR / "shop.sqlite3")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        "OPTIONS": {"timeout": 20},
        # A file for the tests too: in memory, one thread locks another out.
        "TEST": {"NAME": f"{DATABASE}.test"},
    }
}
if django.VERSION >= (5, 1):
    # Or a page that reads before it writes would find that calls wrote meanwhile.
    DATABASES["default"]["OPTIONS"] |= {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL",
    }
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "oneai_middleware.integrations.django",
    "shop",
]
MIDDLEWARE = [
    # First, so that it reads the raw body and meets no CSRF check.
    "oneai_middleware.integrations.django.middleware.OneAIMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "shop.middleware.Unavailable",
]
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
STATIC_URL = "static/"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "account"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2**16

ONEAI = {
    "KEY_STORE": "django",
    "PROVIDERS": {"shop": {"backend": "shop.bots:answer"}},
    "MODELS": {
        "shop-assistant": {"routes": ["shop/answer"], "input": "0.10", "output": "0.20"},
    },
}
if "DEEPSEEK_API_KEY" in os.environ:
    ONEAI["PROVIDERS"]["deepseek"] = {"api_key": "env:DEEPSEEK_API_KEY"}
