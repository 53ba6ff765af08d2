"""The second way to mount the API: as a part of the project's own URLs.

::

    urlpatterns = [path("oneai/", include("oneai_middleware.integrations.django.urls")), ...]

The API is where it is included, and the setting ``MOUNT`` is not used.
"""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.transaction import non_atomic_requests
from django.http import Http404, HttpRequest, HttpResponseBase
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt

from .bridge import serve
from .conf import gateway

gateway()  # a mistake in the settings shows with the first page, not with the first call


@csrf_exempt
def api(request: HttpRequest, path: str, **_: Any) -> HttpResponseBase:
    """The gateway's answer; what stands before ``path`` is the mount.

    :raises Http404: it is not ours: included at the root, the gateway has ``/v1`` alone.
    """
    answer = serve(request, request.path_info.removesuffix(path).removesuffix("/"))
    if answer is None:
        raise Http404
    return answer


# A hold must be committed before a provider is asked.
for alias in connections:
    api = non_atomic_requests(using=alias)(api)

urlpatterns = [re_path(r"\A(?s:(?P<path>.*))\Z", api)]
