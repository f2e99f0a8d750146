"""`/tokenize` and `/detokenize` in the shapes of text-embeddings-inference (`inputs`) and vLLM (`prompt`, `tokens`).

Owns both shapes. A worker of the model does the work: the web side has no tokenizer, and the worker has the very one
that the model is used with.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from flask import Response
from pydantic import BaseModel, ConfigDict, Field, RootModel

from app.access.auth import current_tenant
from app.compat.adapters import Adapter, VendorBody, choose_card
from app.fields import ModelName
from app.http.errors import documented, raise_item_errors
from app.http.responses import json_response
from app.services import services
from app.submission.orders import Order
from app.submission.service import SubmissionService
from config.catalog import ModelCard
from tasks.engine import Outcomes, TokenOperation
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item

__all__ = ["adapter"]

adapter = Adapter("tokens", "Texts to tokens and back, as text-embeddings-inference and vLLM have it")

_MOST_TOKENS = 100_000
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class TokenizeRequest(VendorBody):
    """Body of `POST /tokenize`: vLLM's with `prompt`, or that of text-embeddings-inference with `inputs`."""

    model: ModelName | None = Field(None, description="Name or alias of a model. Default: the first that is served.")
    prompt: str | None = None
    inputs: str | list[str] | None = None
    add_special_tokens: bool | None = Field(None, description="Default: true.")
    return_token_strs: bool | None = Field(None, description="With `prompt`: the words of tokens too.")

    def texts(self) -> list[str]:
        """Return what is to be cut into tokens.

        Raises:
            InvalidRequest: there is nothing, or both shapes at once.
        """
        given = [one for one in (self.prompt, self.inputs) if one is not None]
        if len(given) != 1:
            raise InvalidRequest("either `prompt` or `inputs` is needed", param="inputs")
        texts = [given[0]] if isinstance(given[0], str) else given[0]
        if not texts:
            raise InvalidRequest("must not be empty", param="inputs")
        return texts


class DetokenizeRequest(VendorBody):
    """Body of `POST /detokenize`."""

    model: ModelName | None = Field(None, description="Name or alias of a model. Default: the first that is served.")
    tokens: list[TokenId] = Field(max_length=_MOST_TOKENS)


class Token(BaseModel):
    """One token, in the words of text-embeddings-inference."""

    id: int
    text: str
    special: bool
    start: int | None = Field(description="Where it begins in the text, in characters; null for a special one.")
    stop: int | None


class TokenizedPrompt(BaseModel):
    """VLLM's answer to a `prompt`."""

    model_config = ConfigDict(protected_namespaces=())

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizeResponse(RootModel[list[list[Token]] | TokenizedPrompt]):
    """Answer of `POST /tokenize`: for `inputs` a list of tokens for each, for `prompt` vLLM's object."""


class DetokenizeResponse(BaseModel):
    """Answer of `POST /detokenize`."""

    prompt: str


@adapter.post("/tokenize", responses=documented(TokenizeResponse, computing=True))
def tokenize(body: TokenizeRequest) -> Response:
    """Return the tokens of whole texts, as the model would read them."""
    card, texts = _choose(body.model), body.texts()
    found = list(_read(_ask(card, "tokenize", texts), texts))
    if body.add_special_tokens is False:
        found = [[token for token in tokens if not token["special"]] for tokens in found]
    if body.prompt is None:
        return json_response([[{name: token[name] for name in Token.model_fields} for token in row] for row in found])
    (tokens,) = found
    ids, words = [token["id"] for token in tokens], [token["word"] for token in tokens]
    strings = words if body.return_token_strs else None
    return json_response(
        {"count": len(ids), "max_model_len": card.max_tokens, "tokens": ids, "token_strs": strings},
    )


@adapter.post("/detokenize", responses=documented(DetokenizeResponse, computing=True))
def detokenize(body: DetokenizeRequest) -> Response:
    """Return the text of tokens, special ones included."""
    outcomes = _ask(_choose(body.model), "detokenize", [" ".join(map(str, body.tokens))])
    (text,) = _texts(outcomes)
    return json_response({"prompt": text})


def _choose(name: str | None) -> ModelCard:
    """Return the named model, or the first served one that the caller may use: each has a tokenizer."""
    tenant = current_tenant()
    served = (card.name for card in services().catalog.served if tenant.may_use(card))
    return choose_card(name or next(served, None))


def _ask(card: ModelCard, operation: TokenOperation, texts: Sequence[str]) -> Outcomes:
    field = "tokens" if operation == "detokenize" else "inputs"
    order = Order(card, operation, items_field=field)
    outcomes = SubmissionService(services(), current_tenant()).answer(order, [Item(text) for text in texts])
    raise_item_errors(outcomes.errors)
    return outcomes


def _read(outcomes: Outcomes, texts: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the tokens of each text; `word` is how the tokenizer calls one, `text` what it stands for."""
    for text, columns, words in zip(texts, outcomes.extras["tokens"], _texts(outcomes), strict=True):
        rows = zip(*(column.tolist() for column in columns), words.split("\0"), strict=True) if len(columns[0]) else ()
        yield [
            {
                "id": one,
                "word": word,
                "text": word if start < 0 else text[start:end],
                "special": start < 0,
                "start": None if start < 0 else start,
                "stop": None if start < 0 else end,
            }
            for one, start, end, word in rows
        ]


def _texts(outcomes: Outcomes) -> Iterator[str]:
    for (points,) in outcomes.extras["text"]:
        yield points.tobytes().decode("utf-32-le", "surrogatepass")
