"""What a browser finds in the project's admin."""

import html
import re

from django.contrib.admin.utils import quote
from django.urls import reverse

LISTS = ("account", "apikey", "entry", "hold", "topup")
SECRET = re.compile(r"oneai-sk-[0-9A-Za-z]{46}")
KEY = {"account": "alice", "label": "laptop", "expires_0": "", "expires_1": ""}
ACCOUNT = {"name": "bob", "tier": "pro", "prepaid": "on"}


def page(name, *ids):
    """The path of a page."""
    return reverse(f"admin:oneai_{name}", args=[*map(quote, ids)])


def text(reply):
    """What a reader sees of a page."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text_of(reply)))


def text_of(reply):
    """The page itself."""
    assert reply.status_code == 200
    return html.unescape(reply.content.decode())


def refused(reply):
    """What a form has to say against what was sent."""
    said = html.unescape(reply.content.decode())
    return " ".join(re.findall(r'<ul class="errorlist[^>]*>(.*?)</ul>', said, re.S))


def new_key(client, **fields):
    """The secret of a key that is made in the form."""
    [secret] = SECRET.findall(text(client.post(page("apikey_add"), {**KEY, **fields})))
    return secret


def revoke(client, *ids, confirmed=True):
    """The answer to the action for these keys."""
    sent = {
        "action": "revoke",
        "_selected_action": ids,
        **({"confirmed": "yes"} if confirmed else {}),
    }
    return client.post(page("apikey_changelist"), sent, follow=True)
