"""What the payment provider says: money has come.

It sends JSON, such as ``{"id": "pay_81f2", "account": "user:7", "amount": "25.00"}``, and
signs it: ``Shop-Signature: t=<Unix seconds>,v1=<hex>``, the HMAC-SHA256 of the time, a dot
and the raw body. What is not signed by the secret, or long ago, is not believed.
"""

from __future__ import annotations

import hmac
import json
import re
import time

from flask import Blueprint, Response, abort, current_app, jsonify, request

from oneai_middleware import ConfigurationError
from oneai_middleware.accounts import read_dollars
from oneai_middleware.errors import ReferenceConflict

TOLERANCE = 300
"""Seconds between the signature's time and ours; a call that was recorded cannot be
played again much later."""

webhook = Blueprint("payments", __name__)


@webhook.post("/webhooks/payment")
def paid() -> Response:
    """Top an account up, once for every payment, however often it is announced.

    Any other status than 200 makes the provider send it again.
    """
    body = request.get_data()
    if not is_signed(body, request.headers.get("Shop-Signature", "")):
        abort(400, "The signature is wrong.")
    account, amount, reference = read(body)
    gateway = current_app.extensions["oneai"]
    if gateway.key_store.account(account) is None:
        abort(422, "There is no such account.")
    try:
        booked = gateway.ledger.top_up(account, amount, reference)
    except ValueError as error:
        abort(422, str(error))
    except ReferenceConflict:
        current_app.logger.error("%s was announced before, with another amount", reference)
        abort(409, "This payment was announced before, with another amount.")
    return jsonify(booked=booked)


def is_signed(body: bytes, signature: str) -> bool:
    """Whether whoever knows the secret has signed these very bytes, lately."""
    secret = current_app.config["PAYMENT_SECRET"]
    if not secret:
        abort(503, "PAYMENT_SECRET is not set.")  # anybody can sign with an empty one
    found = re.fullmatch(r"t=(\d{1,12}),v1=([0-9a-f]{64})", signature, re.ASCII)
    if found is None or abs(time.time() - int(found[1])) > TOLERANCE:
        return False
    expected = hmac.new(secret.encode(), found[1].encode() + b"." + body, "sha256").hexdigest()
    return hmac.compare_digest(expected, found[2])


def read(body: bytes) -> tuple[str, int, str]:
    """The account, the nano-dollars and the reference that a payment names."""
    try:
        payment = json.loads(body)
        account, id = payment["account"], payment["id"]
        amount = read_dollars(payment["amount"], "amount")
    except (ValueError, TypeError, KeyError, RecursionError, ConfigurationError) as error:
        abort(400, f"This is no payment: {error}")
    if not isinstance(account, str) or not isinstance(id, str) or not amount:
        abort(400, "This is no payment.")
    if not re.fullmatch(r"[\w.:-]{1,100}", id, re.ASCII):
        abort(400, "This is no payment: its id.")
    return account, amount, f"payment:{id}"
