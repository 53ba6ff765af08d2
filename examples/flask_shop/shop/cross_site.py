"""A browser sends the session along whoever wrote the form: only ours may."""

from __future__ import annotations

from flask import abort, request

from oneai_middleware.errors import CrossSiteRequest
from oneai_middleware.integrations.cross_site import refuse_cross_site


def refuse_other_sites() -> None:
    """Before every page: refuse what another site's form has sent."""
    if request.method == "POST":
        try:
            refuse_cross_site(request.environ, {f"{request.scheme}://{request.host}"})
        except CrossSiteRequest:
            abort(403, "This form is not ours.")
