"""A vendor's adapter: routes that are described like all others, and reached through `app.compat`.

Owns the class and what all adapters do with a call: find the model, make the order, have it answered. Knows no vendor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.access.auth import current_tenant, find_card
from app.fields import ModelName, Truncate
from app.http.bodies import explain_invalid
from app.inference.calls import SynchronousCall, answer_or_queue
from app.inference.schemas import EmbeddingsRequest
from app.services import services
from app.submission.orders import make_order
from config.catalog import Capability, ModelCard
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest, ModelNotFound
from tasks.jobs.chunking import Item
from tasks.vectors import Kind

__all__ = [
    "Adapter",
    "UnnamedEmbeddingsRequest",
    "VendorBody",
    "Wanted",
    "choose_card",
    "embed",
    "rank",
    "refuse_field",
    "reread",
]

M = TypeVar("M", bound=BaseModel)


class Adapter(APIBlueprint):
    """The routes of one vendor. The app has their addresses already, so they are kept here and not registered.

    Attributes:
        views: by method and rule, `POST /embed`.
    """

    def __init__(self, vendor: str, description: str) -> None:
        super().__init__(vendor, __name__, abp_tags=[Tag(name=vendor, description=description)])
        self.views: dict[str, Callable[..., Response]] = {}

    def _add_url_rule(  # type: ignore[no-untyped-def] # the library's signature
        self,
        rule,
        endpoint=None,  # noqa: ARG002
        view_func=None,
        provide_automatic_options=None,  # noqa: ARG002
        **options: Any,
    ) -> None:
        for method in options["methods"]:
            self.views[f"{method} {rule}"] = view_func


class VendorBody(BaseModel):
    """A request body of another service: a bool is no int, null is absent, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class UnnamedEmbeddingsRequest(EmbeddingsRequest):
    """Body of an embeddings call whose model is named elsewhere, or not at all."""

    # Its callers name a model before they hand it on.
    model: ModelName | None = Field(None, description="Name or alias of a model.")  # type: ignore[assignment]


class Wanted(BaseModel):
    """How a call wants its items computed, in our own words; `make_order` reads it."""

    input_type: str | None = None
    dimensions: int | None = None
    truncate: Truncate | None = None
    returns: list[Kind] | None = None


def choose_card(name: str | None, capability: Capability = "dense") -> ModelCard:
    """Return the named model, or the first served one that the caller may use and that has the capability.

    Raises:
        ModelNotFound: there is none.
        tasks.errors.NoWorker: as `find_card`.
    """
    catalog, tenant = services().catalog, current_tenant()
    if name:
        return find_card(catalog, name)
    cards = [find_card(catalog, card.name) for card in catalog.served if tenant.may_use(card)]
    for card in cards:
        if capability in card.capabilities:
            return card
    raise ModelNotFound(f"no served model offers {capability} to this key; name one", param="model")


def embed(
    card: ModelCard, texts: Sequence[str], wanted: Wanted, body: BaseModel, render: Callable[[Outcomes], Response]
) -> Response:
    """Have texts embedded, and return what `render` makes of the outcomes.

    Raises:
        tasks.errors.TwolaneError: as `answer_or_queue`.
    """
    order = make_order(card, "embeddings", wanted)
    return answer_or_queue(SynchronousCall(order, (Item(text) for text in texts), len(texts), body, render))


def rank(
    card: ModelCard,
    pairs: Sequence[tuple[str, str]],
    wanted: Wanted,
    body: BaseModel,
    render: Callable[[Outcomes], Response],
) -> Response:
    """Have pairs of a query and a document scored, and return what `render` makes of the outcomes.

    Raises:
        tasks.errors.TwolaneError: as `answer_or_queue`.
    """
    order = make_order(card, "rerank", wanted)
    items = (Item(document, query=query) for query, document in pairs)
    return answer_or_queue(SynchronousCall(order, items, len(pairs), body, render))


def reread(model: type[M], fields: Mapping[str, Any]) -> M:
    """Return the fields of one body as a body of ours.

    Raises:
        InvalidRequest: one does not fit.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise explain_invalid(error) from None


def refuse_field(param: str, why: str) -> InvalidRequest:
    """Return the refusal of a field that would change the result and that this server cannot obey."""
    return InvalidRequest(f"{param}: {why}", param=param)
