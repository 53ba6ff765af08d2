"""A Django project that offers an AI API to its own users.

Run ``python manage.py migrate`` and ``python manage.py runserver``, and call
``http://127.0.0.1:8000/oneai/v1``. The model ``stock`` is a Python function of the project
that reads its database. With ``DEEPSEEK_API_KEY`` in the environment DeepSeek's models are
offered as well.
"""

import os
from pathlib import Path

from django.core.management.utils import get_random_secret_key

from oneai_middleware.secret import new_secret

BASE_DIR = Path(__file__).parents[1]
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or get_random_secret_key()
ALICE_KEY = os.environ.get("SHOP_API_KEY") or new_secret()

DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE") or BASE_DIR / "shop.sqlite3",
        "ATOMIC_REQUESTS": True,
    }
}
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
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
]

ONEAI = {
    "PROVIDERS": {"shop": {"backend": "shop.bots:stock"}},
    "MODELS": {"stock": {"routes": ["shop/stock"], "input": "0.10", "output": "0.20"}},
    "ACCOUNTS": {"alice": {"tier": "pro", "balance": "5.00", "keys": [ALICE_KEY]}},
}
if "DEEPSEEK_API_KEY" in os.environ:
    ONEAI["PROVIDERS"]["deepseek"] = {"api_key": "env:DEEPSEEK_API_KEY"}
