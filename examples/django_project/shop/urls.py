"""The project's own page; the API needs no line here."""

from django.http import HttpRequest, HttpResponse
from django.urls import path


def home(request: HttpRequest) -> HttpResponse:
    """What was there before."""
    return HttpResponse("The shop's own page.")


urlpatterns = [path("", home)]
