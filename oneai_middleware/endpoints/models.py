"""``GET /v1/models`` and ``GET /v1/models/{id}``: what a caller may use."""

from __future__ import annotations

from typing import Any

from ..admission import Scope
from ..auth import Authentication
from ..call import Call
from ..catalog import Catalog
from ..protocol.response import Response


class Models:
    """The list of models, and one of them."""

    def __init__(self, *, authentication: Authentication, catalog: Catalog, scope: Scope) -> None:
        self._authentication = authentication
        self._catalog = catalog
        self._scope = scope

    def __call__(
        self, environ: dict[str, Any], call: Call, model_id: str | None = None
    ) -> Response:
        """All models of this caller in the catalog's order, or the one of this id.

        :raises AuthenticationFailed: no valid credential.
        :raises ModelNotFound: no such model for this caller.
        """
        with self._scope():
            call.caller = caller = self._authentication.caller(environ)
        if model_id is not None:
            return Response.of_json(self._catalog.find(model_id, caller).as_dict())
        models = [model.as_dict() for model in self._catalog.listed(caller)]
        return Response.of_json({"object": "list", "data": models})
