"""Who the shop's people are: sign up, log in, log out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flask import Blueprint, current_app, redirect, render_template, request, session, url_for
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response

from oneai_middleware.accounts import Account

from .cross_site import refuse_other_sites

pages = Blueprint("users", __name__)
pages.before_request(refuse_other_sites)


@pages.get("/login")
def form() -> str:
    """The page of both forms."""
    return render_template("login.html")


@pages.post("/signup")
def sign_up() -> Response | tuple[str, int]:
    """Make a user, and the account that is theirs."""
    email, password = address(), request.form["password"]
    if not 3 <= len(email) <= 200 or len(password) < 8:
        return render_template("login.html", problem="An address and eight characters."), 400
    with connected() as connection:
        try:
            made = connection.execute(
                "INSERT INTO shop_users (email, password) VALUES (?, ?)",
                (email, generate_password_hash(password)),
            )
        except sqlite3.IntegrityError:
            return render_template("login.html", problem="This address is taken."), 409
    return welcome(made.lastrowid)


@pages.post("/login")
def log_in() -> Response | tuple[str, int]:
    """Open the session of somebody who knows their password."""
    with connected() as connection:
        found = connection.execute(
            "SELECT id, password FROM shop_users WHERE email = ?", (address(),)
        ).fetchone()
    if found is None or not check_password_hash(found[1], request.form["password"]):
        return render_template("login.html", problem="Wrong address or password."), 401
    return welcome(found[0])


@pages.post("/logout")
def log_out() -> Response:
    """Close the session."""
    session.clear()
    return redirect(url_for("users.form"))


def address() -> str:
    """The address in the form, as it is kept."""
    return request.form["email"].strip().lower()


def welcome(user: int | None) -> Response:
    """Begin a session. Accounts are named by what never changes hands: not by addresses."""
    name = f"user:{user}"
    store = current_app.extensions["oneai"].key_store
    if store.account(name) is None:
        store.save_account(Account(name))
    session.clear()
    session["account"] = name
    return redirect(url_for("account.show"))


@contextmanager
def connected() -> Iterator[sqlite3.Connection]:
    """The shop's own tables, which are in the same file as the keys and the money."""
    with closing(sqlite3.connect(current_app.config["DATABASE"])) as connection, connection:
        yield connection


def make_table(database: Path) -> None:
    """Make the table of users, unless it is there."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS shop_users "
            "(id INTEGER PRIMARY KEY AUTOINCREMENT, email TEXT UNIQUE NOT NULL, password TEXT)"
        )
