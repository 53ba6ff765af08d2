"""How a project tests its model: through Django's own client (``manage.py test``)."""

from django.conf import settings
from django.http import HttpResponse
from django.test import TestCase, override_settings

from .models import Product

HEADERS = {"Authorization": f"Bearer {settings.ALICE_KEY}"}


class StockTest(TestCase):
    """The model reads the test's own database, in its own transaction."""

    def ask(self, question: str) -> HttpResponse:
        """What the API answers."""
        body = {"model": "stock", "messages": [{"role": "user", "content": question}]}
        return self.client.post(
            "/oneai/v1/chat/completions", body, "application/json", headers=HEADERS
        )

    def test_it_counts_what_is_on_the_shelf(self) -> None:
        Product.objects.filter(name="teapot").update(stock=3)
        reply = self.ask("Is there a teapot, or a kettle?")
        content = reply.json()["choices"][0]["message"]["content"]
        assert content == "We have 0 of the kettle and 3 of the teapot."

    def test_the_balance_is_spent(self) -> None:
        accounts = {"alice": {"balance": "0", "keys": [settings.ALICE_KEY]}}
        with override_settings(ONEAI={**settings.ONEAI, "ACCOUNTS": accounts}):
            assert self.ask("A cup?").status_code == 402

    def test_the_projects_own_page_is_as_it_was(self) -> None:
        assert self.client.get("/").content == b"The shop's own page."
