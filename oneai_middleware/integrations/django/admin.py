"""The admin: accounts and their money, API keys, and the books to look at.

What the project does not use is not in its admin: without ``KEY_STORE = "django"``
nobody would read these accounts and keys, without its ledger nobody these books.
"""

from __future__ import annotations

import secrets
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from ...accounts import dollars
from ...errors import ReferenceConflict, StoreUnavailable
from ...ledgers.base import Balance as Money
from .columns import BUDGET, CREATED_AT, EXPIRES, LAST_USED, MONEY, at, in_dollars, spent, state
from .conf import gateway
from .forms import AccountForm, KeyForm, TopUpForm
from .key_store import account_of, key_of
from .models import Account, APIKey, Balance, Entry, Hold, TopUp
from .stored import UNAVAILABLE, BooksAdmin, StoredAdmin
from .use import keys_are_ours, money_is_ours

TOP_UP = "oneai.top_up_account"
WORTH_MONEY = ("tier", "prepaid", "limits")
"""What an account may spend, if not how much it has."""


@admin.register(Account)
class AccountAdmin(StoredAdmin):
    """Accounts, and a page that tops one up."""

    in_use = staticmethod(keys_are_ours)
    form = AccountForm
    list_filter = ("tier", "prepaid")
    ordering = ("name",)
    raw_id_fields = ("owner",)
    search_fields = ("name",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The accounts with their money, and with their owners, who may be in another
        database."""
        its = Balance.objects.filter(account=OuterRef("name"))
        money = {name: Coalesce(Subquery(its.values(name)), 0) for name in Money._fields}
        return super().get_queryset(request).annotate(**money).prefetch_related("owner")

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        """The columns: what is available stands there where it is known."""
        return ("name", "owner", "tier", "prepaid", *(MONEY[:1] if money_is_ours() else ()))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[Any, ...]:
        """The name, which books and keys know it by, the money, and from those who may
        not top up what is worth money."""
        user: Any = request.user
        settled = () if user.has_perm(TOP_UP) else WORTH_MONEY
        if obj is None:
            return settled
        return ("name", *settled, *(MONEY if money_is_ours() else ()))

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save the account where calls find it, and whose it is."""
        gateway().key_store.save_account(account_of(obj))
        Account.objects.filter(name=obj.name).update(owner_id=obj.owner_id)

    def more_urls(self) -> list[URLPattern]:
        """The page that tops up."""
        page = self.admin_site.admin_view(self.top_up_view)
        return [path("<path:object_id>/top-up/", page, name="oneai_account_top_up")]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """The page of an account, with the way to the one that tops it up."""
        context = {**(extra_context or {}), "may_top_up": self.may_top_up(request)}
        return super().change_view(request, object_id, form_url, context)

    def may_top_up(self, request: HttpRequest) -> bool:
        """Whether the user may add money to an account they see."""
        user: Any = request.user
        return user.has_perm(TOP_UP) and money_is_ours() and self.has_view_permission(request)

    def top_up_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """The page that adds money to an account."""
        if not self.may_top_up(request):
            raise PermissionDenied
        account: Any = self.get_object(request, unquote(object_id))
        if account is None:
            raise Http404
        # The page sent twice is one top-up: it has its reference from the start.
        reference = f"admin-{secrets.token_hex(8)}"
        form = TopUpForm(request.POST or None, initial={"reference": reference})
        if form.is_valid() and self._book(request, account, form):
            name = f"{self.admin_site.name}:oneai_account_change"
            return HttpResponseRedirect(reverse(name, args=[object_id]))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Top up",
            "subtitle": account.name,
            "original": account,
            "form": form,
            "available": dollars(account.available),
        }
        status = 503 if form.non_field_errors() else 200
        return TemplateResponse(request, "admin/oneai/account/top_up.html", context, status=status)

    def _book(self, request: HttpRequest, account: Any, form: TopUpForm) -> bool:
        amount, reference = form.cleaned_data["amount"], form.cleaned_data["reference"]
        done = f"Topped up {dollars(amount)} dollars, reference {reference}."
        try:
            with self.writing():
                booked = gateway().ledger.top_up(account.name, amount, reference)
                if booked:
                    self.log_change(request, account, done)
        except StoreUnavailable:
            form.add_error(None, UNAVAILABLE)
            return False
        except ReferenceConflict as error:
            form.add_error("reference", str(error))
            return False
        except ValueError as error:
            form.add_error("amount", str(error))
            return False
        if booked:
            self.message_user(request, done, messages.SUCCESS)
        else:
            self.message_user(request, f"{reference} was booked before.", messages.WARNING)
        return True


@admin.register(APIKey)
class APIKeyAdmin(StoredAdmin):
    """API keys. A secret is on one page: the answer to the form that made its key."""

    in_use = staticmethod(keys_are_ours)
    form = KeyForm
    actions = ("revoke",)
    list_display = (
        "hint",
        "account",
        "label",
        state,
        BUDGET,
        "period",
        EXPIRES,
        LAST_USED,
    )
    list_filter = ("revoked",)
    list_select_related = ("account",)
    ordering = ("-created_at",)
    raw_id_fields = ("account",)
    search_fields = ("id", "hint", "label", "account__name")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[Any, ...]:
        """What is settled when a key is made."""
        if obj is None:
            return ()
        money = (spent,) if money_is_ours() else ()
        return ("account", "id", "hint", state, *money, CREATED_AT, LAST_USED)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """The form's fields; whoever may only look sees them as the form shows them."""
        names: list[Any] = [*super().get_fields(request, obj)]
        if obj is None or self.has_change_permission(request, obj):
            return names
        shown = {"budget": BUDGET, "expires": EXPIRES}
        return [shown.get(name, name) for name in names]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> Any:
        """The form for a new key, which is followed by its secret and nothing else."""
        alone = {"show_save_and_continue": False, "show_save_and_add_another": False}
        return super().add_view(request, form_url, {**(extra_context or {}), **alone})

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make the key, or change what the form has changed of it."""
        record, store = key_of(obj), gateway().key_store
        names = form.changed_data if change else set(form.cleaned_data) - {"account"}
        fields = {name: getattr(record, name) for name in names}
        if not change:
            key, obj.secret = store.create(record.account.name, **fields)
            obj.id, obj.hint = key.id, key.hint
        elif fields:
            store.update(obj.id, **fields)

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> Any:
        """The one page with the secret."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "API key created",
            "subtitle": None,
            "key": obj,
            # Django logs what a template was given where it misses something.
            "secret": lambda: obj.secret,
        }
        page = "admin/oneai/apikey/secret.html"
        return TemplateResponse(request, page, context, headers={"Cache-Control": "no-store"})

    @admin.action(permissions=["change"], description="Revoke selected API keys")
    def revoke(self, request: HttpRequest, queryset: QuerySet[APIKey]) -> HttpResponseBase | None:
        """Close the selected keys for good, once somebody has confirmed that."""
        keys = [*queryset.filter(revoked=False)]
        if keys and "confirmed" not in request.POST:
            context = {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": "Revoke API keys",
                "subtitle": None,
                "keys": keys,
                "checkbox": ACTION_CHECKBOX_NAME,
            }
            return TemplateResponse(request, "admin/oneai/apikey/revoke.html", context)
        try:
            with self.writing():
                for key in keys:
                    gateway().key_store.update(key.id, revoked=True)
                    self.log_change(request, key, "Revoked.")
        except StoreUnavailable:
            self.message_user(request, UNAVAILABLE, messages.ERROR)
        else:
            self.message_user(request, f"Revoked: {len(keys)}.", messages.SUCCESS)
        return None


@admin.register(Entry)
class EntryAdmin(BooksAdmin):
    """The record of calls."""

    list_display = (
        at("settled_at"),
        "account",
        "key",
        "model",
        "provider",
        "prompt_tokens",
        "completion_tokens",
        in_dollars("cost"),
        "outcome",
    )
    list_filter = ("prepaid", "estimated")
    ordering = ("-settled_at",)
    search_fields = ("request_id__exact", "account__exact", "key__exact", "day__exact")
    fields = (
        ("request_id", at("settled_at"), "duration"),
        ("account", "key", "prepaid"),
        ("model", "provider", "outcome"),
        (in_dollars("cost"), "estimated"),
        ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
        tuple(
            in_dollars(f"{kind}_price", f"{kind} price per million tokens", times=10**6)
            for kind in ("input", "output", "cached")
        ),
    )


@admin.register(Hold)
class HoldAdmin(BooksAdmin):
    """Money on hold for calls that run."""

    list_display = ("request_id", "account", in_dollars("amount"), EXPIRES)
    ordering = ("expires",)
    search_fields = ("request_id__exact", "account__exact")
    fields = ("request_id", "account", in_dollars("amount"), EXPIRES, "draft")


@admin.register(TopUp)
class TopUpAdmin(BooksAdmin):
    """Money that was added."""

    list_display = (at("booked_at"), "account", in_dollars("amount"), "reference")
    ordering = ("-booked_at",)
    search_fields = ("reference__exact", "account__exact")
    fields = ("reference", "account", in_dollars("amount"), at("booked_at"))
