"""What the payment provider says: money has come.

It sends JSON, such as ``{"id": "pay_81f2", "account": "user:7", "amount": "25.00"}``, and
signs it: ``Shop-Signature: t=<Unix seconds>,v1=<hex>``, the HMAC-SHA256 of the time, a dot
and the raw body. What is not signed by the secret, or long ago, is not believed.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import time

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from oneai_middleware import ConfigurationError
from oneai_middleware.accounts import read_dollars
from oneai_middleware.errors import ReferenceConflict
from oneai_middleware.integrations.django.conf import gateway

TOLERANCE = 300
"""Seconds between the signature's time and ours; a call that was recorded cannot be
played again much later."""

log = logging.getLogger("shop.payments")


@csrf_exempt
@require_POST
def paid(request: HttpRequest) -> JsonResponse:
    """Top an account up, once for every payment, however often it is announced.

    Any other status than 200 makes the provider send it again.
    """
    if not is_signed(request.body, request.headers.get("Shop-Signature", "")):
        return JsonResponse({"error": "the signature is wrong"}, status=400)
    try:
        account, amount, reference = read(request.body)
    except (ValueError, TypeError, KeyError, ConfigurationError) as error:
        return JsonResponse({"error": f"this is no payment: {error}"}, status=400)
    if gateway().key_store.account(account) is None:
        return JsonResponse({"error": "there is no such account"}, status=422)
    try:
        booked = gateway().ledger.top_up(account, amount, reference)
    except ReferenceConflict as error:
        log.error("%s", error)
        return JsonResponse({"error": "announced before, with another amount"}, status=409)
    return JsonResponse({"booked": booked})


def is_signed(body: bytes, signature: str) -> bool:
    """Whether whoever knows the secret has signed these very bytes, lately."""
    if not settings.PAYMENT_SECRET:
        raise ImproperlyConfigured("PAYMENT_SECRET is empty: anybody can sign with it")
    found = re.fullmatch(r"t=(\d{1,12}),v1=([0-9a-f]{64})", signature, re.ASCII)
    if found is None or abs(time.time() - int(found[1])) > TOLERANCE:
        return False
    signed = found[1].encode() + b"." + body
    expected = hmac.new(settings.PAYMENT_SECRET.encode(), signed, "sha256").hexdigest()
    return hmac.compare_digest(expected, found[2])


def read(body: bytes) -> tuple[str, int, str]:
    """The account, the nano-dollars and the reference that a payment names."""
    payment = json.loads(body)
    account, id = payment["account"], payment["id"]
    amount = read_dollars(payment["amount"], "amount")
    if not isinstance(account, str) or not re.fullmatch(r"\w{1,100}", str(id)) or not amount:
        raise ValueError("account, id or amount")
    return account, amount, f"payment:{id}"
