"""What a page says while the database cannot be asked, or written to."""

from __future__ import annotations

from collections.abc import Callable

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from oneai_middleware.errors import StoreUnavailable


class Unavailable:
    """Answers 503 where a view could not go on."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The page, for errors that will pass; Django's own for all others."""
        if not isinstance(error, OperationalError | StoreUnavailable):
            return None
        response = render(request, "shop/unavailable.html", status=503)
        response["Retry-After"] = "1"
        return response
