"""How a shop tests itself, through Django's own client (``manage.py test``)."""

import hmac
import json
import re
import time
from typing import Any
from unittest import mock

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import connection
from django.test import Client, TransactionTestCase, override_settings

from oneai_middleware.accounts import NANO
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.integrations.django.conf import gateway

from .views import account_name, open_account

QUESTION = {"model": "shop-assistant", "messages": [{"role": "user", "content": "When?"}]}


class ShopTest(TransactionTestCase):
    """What its users, its staff and the payment provider do."""

    def setUp(self) -> None:
        """Alice is logged in, in a browser."""
        alice = get_user_model().objects.create_user("alice")
        open_account(alice)
        self.account = account_name(alice)
        self.browser = Client()
        self.browser.force_login(alice)

    def sign_up(self, name: str) -> Client:
        """The browser of somebody new."""
        browser = Client()
        password = "correct horse battery"
        form = {"username": name, "password1": password, "password2": password}
        self.assertRedirects(browser.post("/signup", form), "/")
        return browser

    def new_key(self) -> str:
        """The secret of a key that alice has made."""
        page = self.browser.post("/keys", {"label": "laptop"})
        assert page["Cache-Control"] == "no-store"
        [secret] = re.findall('<code id="secret">(.*?)</code>', page.content.decode())
        self.assertNotContains(self.browser.get("/"), secret)
        return str(secret)

    def call(self, secret: str) -> Any:
        """A call of the API."""
        bearer = {"Authorization": f"Bearer {secret}"}
        path = "/oneai/v1/chat/completions"
        return self.client.post(path, QUESTION, "application/json", headers=bearer)

    def announce(self, secret: str = settings.PAYMENT_SECRET, at: int = 0, **changes: Any) -> Any:
        """A payment, as its provider announces it."""
        payment = {"id": "pay_1", "account": self.account, "amount": "5.00", **changes}
        body, moment = json.dumps(payment).encode(), str(int(time.time()) + at)
        signed = hmac.new(secret.encode(), f"{moment}.".encode() + body, "sha256").hexdigest()
        return Client(enforce_csrf_checks=True).post(
            "/webhooks/payment",
            body,
            "application/json",
            headers={"Shop-Signature": f"t={moment},v1={signed}"},
        )

    def test_users_make_keys_pay_and_call(self) -> None:
        secret = self.new_key()
        assert self.call(secret).status_code == 402
        assert self.announce().json() == {"booked": True}
        answer = self.call(secret).json()["choices"][0]["message"]["content"]
        assert answer == "We are open from nine to five. You asked: When?"
        page = self.browser.get("/")
        self.assertContains(page, "<td>shop-assistant</td><td>1</td>")
        [id] = re.findall('action="/keys/(.*?)/revoke"', page.content.decode())
        assert self.sign_up("bob").post(f"/keys/{id}/revoke").status_code == 404
        self.assertRedirects(self.browser.post(f"/keys/{id}/revoke"), "/")
        assert self.call(secret).status_code == 401
        assert gateway().ledger.audit() == []

    def test_a_payment_is_booked_once(self) -> None:
        booked = [self.announce().json()["booked"] for _ in range(2)]
        assert booked == [True, False]
        assert self.announce(amount="6.00").status_code == 409
        assert gateway().ledger.balance(self.account).topped_up == 5 * NANO

    def test_what_nobody_signed_is_not_believed(self) -> None:
        refused = [self.announce("another secret"), self.announce(at=-400), self.announce(at=400)]
        assert [reply.status_code for reply in refused] == [400, 400, 400]
        assert self.client.post("/webhooks/payment").status_code == 400
        wrong = [self.announce(amount="-5"), self.announce(account=7), self.announce(id="")]
        assert [reply.status_code for reply in wrong] == [400, 400, 400]
        assert self.announce(account="user:0").status_code == 422
        assert gateway().ledger.balance(self.account).topped_up == 0

    @override_settings(PAYMENT_SECRET="")
    def test_without_its_secret_the_webhook_believes_nobody(self) -> None:
        client = Client(raise_request_exception=False)
        assert client.post("/webhooks/payment").status_code == 500

    def test_a_page_that_cannot_go_on_says_so_and_leaves_nothing_half_done(self) -> None:
        password = "correct horse battery"
        form = {"username": "bob", "password1": password, "password2": password}
        down = StoreUnavailable("Try again shortly.")
        with mock.patch.object(gateway().key_store, "save_account", side_effect=down):
            reply = Client().post("/signup", form)
        self.assertContains(reply, "Try again", status_code=503)
        assert not get_user_model().objects.filter(username="bob").exists()
        self.sign_up("bob")

    def test_no_call_waits_while_a_password_is_hashed(self) -> None:
        inside = []

        def hashed(password: str | None) -> str:
            inside.append(connection.in_atomic_block)
            return make_password(password)

        with mock.patch("django.contrib.auth.base_user.make_password", hashed):
            self.sign_up("bob")
        assert inside == [False]

    def test_visitors_are_asked_to_log_in(self) -> None:
        self.assertRedirects(Client().get("/"), "/login?next=/")
        self.assertRedirects(Client().post("/keys"), "/login?next=/keys")
        self.assertRedirects(Client().post("/keys/key_0/revoke"), "/login?next=/keys/key_0/revoke")

    def test_the_staff_tops_up_in_the_admin(self) -> None:
        staff = Client()
        staff.force_login(get_user_model().objects.create_superuser("boss"))
        page = f"/admin/oneai/account/{self.account.replace(':', '_3A')}/top-up/"
        form = {"amount": "12.50", "reference": "in cash"}
        assert staff.post(page, form).status_code == 302
        self.assertContains(self.browser.get("/"), "$12.50")
