"""Django: one line in ``MIDDLEWARE``, one dict ``ONEAI`` in the settings.

::

    INSTALLED_APPS = [..., "oneai_middleware.integrations.django"]
    MIDDLEWARE = ["oneai_middleware.integrations.django.middleware.OneAIMiddleware", ...]
    ONEAI = {"PROVIDERS": {"deepseek": {"api_key": "env:DEEPSEEK_API_KEY"}}}

The middleware stands first: there it reads the raw body, meets neither CSRF checks
nor compression, and still fires Django's signals and answers its test client.
"""
