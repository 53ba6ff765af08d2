"""Accounts in the database, as the setting ``ACCOUNTS`` would declare them."""

from django.apps import apps

from oneai_middleware.accounts import TIERS, read_accounts
from oneai_middleware.integrations.django.key_store import DjangoKeyStore
from oneai_middleware.integrations.django.ledger import DjangoLedger
from oneai_middleware.integrations.django.models import APIKey


def begin(table):
    """Nothing but the accounts of ``table``, their keys and balances."""
    for model in reversed([*apps.get_app_config("oneai").get_models()]):
        model.objects.all().delete()
    for name, declared in read_accounts(table, TIERS).items():
        DjangoKeyStore().save_account(declared.account)
        for digest, hint in declared.keys.items():
            APIKey.objects.create(id=digest[:12], digest=digest, account_id=name, hint=hint)
        if declared.balance:
            DjangoLedger().top_up(name, declared.balance, f"opening of {name}")
