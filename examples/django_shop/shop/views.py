"""What somebody sees of their account: sign-up, keys, balance, usage."""

from __future__ import annotations

import time
from typing import Any

from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from oneai_middleware.accounts import Account, ApiKey, dollars
from oneai_middleware.integrations.django import models
from oneai_middleware.integrations.django.conf import gateway

MOST_KEYS = 20


def sign_up(request: HttpRequest) -> HttpResponse:
    """Make a user, and the account that is theirs."""
    form = UserCreationForm(request.POST or None)
    if not form.is_valid():
        return render(request, "shop/signup.html", {"form": form})
    user = form.save(commit=False)  # the password is hashed here, and calls do not wait for it
    with transaction.atomic():
        user.save()
        open_account(user)
    login(request, user)
    return redirect("account")


@login_required
def show(request: HttpRequest) -> HttpResponse:
    """Everything on one page."""
    name = account_name(request.user)
    ours = gateway()
    page = {
        "name": name,
        "base_url": request.build_absolute_uri(f"{ours.settings.mount}/v1"),
        "available": dollars(ours.ledger.balance(name).available),
        "usage": [(row, dollars(row.cost)) for row in ours.ledger.usage(name, by="model")],
        "keys": valid_keys(name),
    }
    return render(request, "shop/account.html", page)


@login_required
@require_POST
def create(request: HttpRequest) -> HttpResponse:
    """A new key. Its secret is in this answer, and nowhere else: no session, no message."""
    name = account_name(request.user)
    if len(valid_keys(name)) >= MOST_KEYS:
        return HttpResponse("Revoke a key first.", status=409)
    if gateway().key_store.account(name) is None:  # a user whom the admin or a command made
        open_account(request.user)
    label = "".join(filter(str.isprintable, request.POST.get("label", "")))[:60]
    key, secret = gateway().key_store.create(name, label=label)
    response = render(request, "shop/new_key.html", {"key": key, "secret": secret})
    response["Cache-Control"] = "no-store"
    return response


@login_required
@require_POST
def revoke(request: HttpRequest, id: str) -> HttpResponse:
    """Close a key: one's own, and no other."""
    if id not in [key.id for key in valid_keys(account_name(request.user))]:
        raise Http404
    gateway().key_store.update(id, revoked=True)
    return redirect("account")


def account_name(user: Any) -> str:
    """Accounts are named by what never changes hands: not by user names."""
    return f"user:{user.pk}"


def open_account(user: Any) -> None:
    """Make the account of a user, who is shown as its owner in the admin."""
    name = account_name(user)
    with transaction.atomic():
        gateway().key_store.save_account(Account(name))
        models.Account.objects.filter(name=name).update(owner=user)


def valid_keys(name: str) -> list[ApiKey]:
    """The keys of the account that open something."""
    now = time.time()
    return [key for key in gateway().key_store.keys(name) if key.is_valid(now)]
