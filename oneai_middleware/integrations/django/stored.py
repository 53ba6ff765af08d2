"""Tables in the admin: there while the project uses them, and written in one piece."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from django.contrib import admin
from django.db import connections, router
from django.db.models import QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.db.transaction import non_atomic_requests
from django.http import HttpRequest
from django.urls import URLPattern

from ...errors import StoreUnavailable
from .database import transaction_on
from .use import money_is_ours

log = logging.getLogger("oneai_middleware.integrations.django")

UNAVAILABLE = "The database cannot be written to at the moment, and nothing was done. Try again."


class StoredAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A table that is there for whoever may see it, while the project uses it. No row
    of it is deleted: what is in the books is still about it."""

    in_use: Callable[[], bool]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may, and the project uses the table."""
        return type(self).in_use() and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Whether the user may, and the project uses the table."""
        return type(self).in_use() and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may, and the project uses the table."""
        return type(self).in_use() and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may."""
        return False

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Whether a list may be filtered so: not by digests, which would be found out."""
        given = () if request is None else (request,)  # which Django has from 5.0 on
        allowed = super().lookup_allowed(lookup, value, *given)
        return allowed and "digest" not in lookup.split(LOOKUP_SEP)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The rows where they are written: a replica may not know them yet."""
        return super().get_queryset(request).using(router.db_for_write(self.model))

    def more_urls(self) -> list[URLPattern]:
        """The pages that the table has besides the usual ones."""
        return []

    def get_urls(self) -> list[Any]:
        """The usual pages and its own. None is in a transaction of ATOMIC_REQUESTS: that
        would have read before it writes, which SQLite refuses while calls write."""
        urls = [*self.more_urls(), *super().get_urls()]
        for url in urls:
            for alias in connections:
                non_atomic_requests(using=alias)(url.callback)
        return urls

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """All that is written inside, or nothing.

        :raises StoreUnavailable: the database cannot be used now; it is in the log.
        """
        try:
            with transaction_on(router.db_for_write(self.model)):
                yield
        except StoreUnavailable as error:
            log.error("the admin cannot write: %s", error.detail)
            raise

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """The page with a form. Where what is sent cannot be written, it is there again."""
        if request.method != "POST":
            return super().changeform_view(request, object_id, form_url, extra_context)
        try:
            with self.writing():
                return super().changeform_view(request, object_id, form_url, extra_context)
        except StoreUnavailable:
            # The view itself would begin to write once more.
            again: Any = self._changeform_view  # type: ignore[attr-defined]
            request.oneai_refusal = UNAVAILABLE  # type: ignore[attr-defined]
            page = again(request, object_id, form_url, extra_context)
            page.status_code = 503
            return page

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """The form, which accepts nothing once the database has refused it."""
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.refusal = getattr(request, "oneai_refusal", None)
        return form


class BooksAdmin(StoredAdmin):
    """A table of the books, to look at: the ledger alone writes it."""

    in_use = staticmethod(money_is_ours)
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody may."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may."""
        return False
