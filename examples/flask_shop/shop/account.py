"""What somebody sees of their account: keys, balance, usage."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import (
    Blueprint,
    abort,
    current_app,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response

from oneai_middleware import Gateway
from oneai_middleware.accounts import ApiKey, dollars

from .cross_site import refuse_other_sites

MOST_KEYS = 20

pages = Blueprint("account", __name__)
pages.before_request(refuse_other_sites)
pages.add_app_template_filter(dollars)


@pages.get("/")
def show() -> str | Response:
    """Everything on one page."""
    if "account" not in session:
        return redirect(url_for("users.form"))
    gateway, name = mounted(), session["account"]
    return render_template(
        "account.html",
        base_url=request.host_url + gateway.settings.mount.strip("/") + "/v1",
        balance=gateway.ledger.balance(name),
        usage=gateway.ledger.usage(name, by="model"),
        keys=valid_keys(),
    )


@pages.post("/keys")
def create() -> Response:
    """A new key. Its secret is in this answer, and nowhere else: no session, no log."""
    if len(valid_keys()) >= MOST_KEYS:
        abort(409, "Revoke a key first.")
    label = request.form.get("label", "").strip()[:60]
    key, secret = mounted().key_store.create(owner(), label=label)
    response = make_response(render_template("new_key.html", key=key, secret=secret))
    response.headers["Cache-Control"] = "no-store"
    return response


@pages.post("/keys/<id>/revoke")
def revoke(id: str) -> Response:
    """Close a key: one's own, and no other."""
    if id not in [key.id for key in valid_keys()]:
        abort(404)
    mounted().key_store.update(id, revoked=True)
    return redirect(url_for("account.show"))


def owner() -> str:
    """The account of whoever is logged in; others are told to do so."""
    if "account" not in session:
        abort(401, "Log in first.")
    name: str = session["account"]
    return name


def valid_keys() -> list[ApiKey]:
    """Their keys that open something."""
    now = datetime.now(UTC).timestamp()
    return [key for key in mounted().key_store.keys(owner()) if key.is_valid(now)]


def mounted() -> Gateway:
    """The gateway below /oneai."""
    gateway: Gateway = current_app.extensions["oneai"]
    return gateway
