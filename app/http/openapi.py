"""The OpenAPI text: what flask-openapi3 cannot read off a route's signature.

Owns the app's class and the description of bodies that come in several content types.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.info import Info
from flask_openapi3.models.schema import Schema
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel

from app.http.api_text import complete_api_text
from app.http.bodies import ApiRequest
from app.http.errors import ErrorBody, refuse_invalid_body, render_error
from app.http.places import PLACE, HeldAnswer, Kind, Places, find_kind
from app.http.request_ids import begin_request, finish_request
from app.http.responses import WholeResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Api", "describe_either", "describe_json_or_ndjson", "register_schema"]

_REF = "#/components/schemas/{model}"
_ABOUT = "Embeddings and reranking on your own machines: small requests at once, large corpora as jobs."
_SECURITY: dict[str, Any] = {"key": {"type": "http", "scheme": "bearer", "description": "Only where keys are set up."}}


class Api(OpenAPI):
    """The Flask app: requests are read by us, refused bodies have our envelope, the text is at /openapi.json.

    Args:
        version: the product's.
        places: how many requests of each kind may hold a thread.
        example_model: a model that is served, for the examples of the OpenAPI text.
        with_keys: whether calls need a key.
    """

    request_class = ApiRequest
    response_class = WholeResponse

    def __init__(self, version: str, places: Places, *, example_model: str, with_keys: bool) -> None:
        super().__init__(
            "app",
            info=Info(title="Twolane", version=version, description=_ABOUT),
            security_schemes=_SECURITY,
            validation_error_status=400,
            validation_error_model=ErrorBody,
            validation_error_callback=refuse_invalid_body,
            # Its pages are not used: they live below a prefix, and start by a script inside the page.
            doc_ui=False,
            static_folder="static",
            template_folder="templates",
        )
        self.places = places
        # Called with each answer that was refused for want of a place: none of the app's hooks sees those.
        self.note_refusal: Callable[[Response], object] = lambda _: None
        # By path: answers a request with a small body without Flask, or returns None and leaves it to Flask.
        self.direct: dict[str, Callable[[WSGIEnvironment, StartResponse], list[bytes] | None]] = {}
        self._described_later: list[Callable[[], APIBlueprint]] = []
        self._described: list[str] = []
        self._description_lock = threading.Lock()
        self._completed: dict[str, Any] | None = None
        self._example_model, self._with_keys = example_model, with_keys
        # It would redirect, with a page in HTML that repeats the Host header.
        self.url_map.merge_slashes = False

    def describe_later(self, load: Callable[[], APIBlueprint]) -> None:
        """Add routes to the OpenAPI text when it is first asked for; their addresses are registered by the caller."""
        self._described_later.append(load)

    @property
    def api_doc(self) -> dict[str, Any]:
        """The OpenAPI text, made at its first use."""
        with self._description_lock:
            while self._described_later:
                self._describe(self._described_later[-1]())
                self._described_later.pop()
            if self._completed is None:
                document: dict[str, Any] = super().api_doc
                names = (*self.blueprints, *self._described)
                complete_api_text(document, names, model=self._example_model, with_keys=self._with_keys)
                self._completed = document
            return self._completed

    def _describe(self, routes: APIBlueprint) -> None:
        self._described.append(routes.name)
        for tag in routes.tags:
            if tag.name not in self.tag_names:
                self.tags.append(tag)
                self.tag_names.append(tag.name)
        self.paths.update(routes.paths)
        self.components_schemas.update(routes.components_schemas)

    def wsgi_app(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request if there is a place for it, which it holds until its last byte is with the web server.

        Doubled and trailing slashes, as joined base URLs have them, mean nothing.
        """
        path = environ["PATH_INFO"]
        if "//" in path or path.endswith("/"):
            environ["PATH_INFO"] = "/" + "/".join(filter(None, path.split("/")))
        kind = find_kind(environ)
        if (place := self.places.take(kind)) is None:
            return self._refuse(kind, environ)(environ, start_response)
        environ[PLACE] = place
        answer: Iterable[bytes] | None = None
        try:
            if kind is Kind.SMALL and (direct := self.direct.get(environ["PATH_INFO"])) is not None:
                answer = direct(environ, start_response)
            if answer is None:
                answer = super().wsgi_app(environ, start_response)
        except BaseException:
            place.release()
            raise
        if isinstance(answer, list):
            place.release()
            return answer
        return HeldAnswer(answer, place)

    def _refuse(self, kind: Kind, environ: "WSGIEnvironment") -> Response:
        """Return the answer for want of a place. Thousands may need one in a second, so Flask has no part in it."""
        response = render_error(self.places.refuse(kind))
        begin_request(environ.get("HTTP_X_REQUEST_ID", ""))
        finish_request(response, environ["REQUEST_METHOD"], "(no place)", time.perf_counter())
        self.note_refusal(response)
        return response

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as it is: none of ours is a coroutine, and Flask would look for one at every hook."""
        return func


def describe_json_or_ndjson(model: type[BaseModel], line: str) -> dict[str, Any]:
    """Return the OpenAPI text of a body that is JSON or NDJSON; the model has to be registered too."""
    ndjson = {"schema": {"type": "string", "description": line}}
    by_json = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    return {"requestBody": {"required": True, "content": {"application/json": by_json, "application/x-ndjson": ndjson}}}


def describe_either(description: str, *models: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI text of an answer whose body is one of several; the models have to be registered too."""
    schemas = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    return {"description": description, "content": {"application/json": {"schema": {"anyOf": schemas}}}}


def register_schema(api: OpenAPI, model: type[BaseModel]) -> None:
    """Put a model and those that it names among the app's schemas."""
    schema = model.model_json_schema(ref_template=_REF)
    named = {**schema.pop("$defs", {}), model.__name__: schema}
    api.components_schemas.update({name: Schema(**text) for name, text in named.items()})
