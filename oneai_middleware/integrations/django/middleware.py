"""The Django middleware: is this path ours, or the project's?"""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from .bridge import serve
from .conf import gateway

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class OneAIMiddleware:
    """Answers what is below the mount; hands everything else on, untouched.

    Put it first in ``MIDDLEWARE``.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        gateway()  # a mistake in the settings stops the start

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        answer = serve(request, gateway().settings.mount)
        return self.get_response(request) if answer is None else answer
