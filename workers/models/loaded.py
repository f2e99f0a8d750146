"""What a loaded model is: a card, its tokenizer and a backend that runs it. Owns no loading (`registry`)."""

from dataclasses import dataclass

from config.catalog import ModelCard
from workers.models.backends.base import Backend
from workers.models.tokenizing.tokenizer import TextTokenizer

__all__ = ["LoadedModel"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        card: its entry in the catalogue.
        tokenizer: gives the ids that the backend reads.
        backend: runs them.
        fingerprint: says which weights, tokenizer, pooling, precision and prompt made a vector: two vectors with
            the same fingerprint may be compared.
        fallback: why another backend runs it than was wanted; empty where it is that one.
        key: under which the engine queues its rows: the card's name, or another one while two loads of the card exist.
    """

    card: ModelCard
    tokenizer: TextTokenizer
    backend: Backend
    fingerprint: str
    fallback: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.card.name)
