"""Asks for the gateway too soon."""

from oneai_middleware.integrations.django.conf import gateway

ours = gateway()


def who(environ):
    return None
