"""The Django app: its tables, its admin and the system checks."""

from __future__ import annotations

from django.apps import AppConfig


class OneAIConfig(AppConfig):
    """``"oneai_middleware.integrations.django"`` in ``INSTALLED_APPS``."""

    name = "oneai_middleware.integrations.django"
    label = "oneai"
    verbose_name = "OneAI"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks by importing them."""
        from . import checks  # noqa: F401
