"""The project's own pages."""

from django.conf import settings
from django.contrib import admin
from django.core.signals import setting_changed
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.urls import path

from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.rate_limiters.base import Claim
from project.accounts import begin
from project.models import Note


def page(request):
    """A page long enough to be compressed; it reads the database in a transaction."""
    assert connection.in_atomic_block
    return HttpResponse(f"the project's own page, {Note.objects.count()} notes. " * 20)


def broken(request):
    """A view with a bug."""
    raise RuntimeError("a bug of the project")


def books(request):
    """What only the gateway's own process can know of an account."""
    ours, name = gateway(), request.GET["account"]
    rows = [row._asdict() | {"settled_at": None} for row in ours.ledger.entries(name)]
    return JsonResponse(
        {
            "balance": ours.ledger.balance(name)._asdict(),
            "entries": rows,
            "faults": ours.ledger.audit(),
            "free_slots": free_slots(ours.rate_limiter, name),
        }
    )


def free_slots(limiter, name):
    """How many more calls the account may make now, of the one it is allowed."""
    try:
        grant = limiter.acquire(name, [Claim(f"account:{name}", Limits(concurrent=1))], 0)
    except RateLimitExceeded:
        return 0
    limiter.cancel(grant)
    return 1


def fresh(request):
    """Begin with new books, as after a start."""
    setting_changed.send(sender=None, setting="ONEAI", value=None, enter=True)
    if settings.ONEAI.get("KEY_STORE") == "django":
        begin(settings.SHOP_ACCOUNTS)
    return HttpResponse("fresh")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("fresh/", fresh),
    path("page/", page),
    path("broken/", broken),
    path("books/", books),
]
