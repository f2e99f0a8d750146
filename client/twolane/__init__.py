"""The client of a Twolane server: embeddings and reranking, small requests at once and large corpora as jobs.

Owns what a program imports; the command line is `twolane.cli`.
"""

from twolane.answers import Embeddings, Job, Model, Ranking, ResultItem
from twolane.async_client import AsyncTwolane
from twolane.client import Twolane
from twolane.corpus import Block, EmbeddedCorpus
from twolane.errors import (
    ApiError,
    InputError,
    ItemsFailed,
    JobEnded,
    MissingExtra,
    ServerUnreachable,
    SinkError,
    TwolaneError,
    UnexpectedAnswer,
    WebhookError,
)
from twolane.requests import JobOptions, Webhook
from twolane.webhooks import WebhookEvent, verify_webhook

__all__ = [
    "ApiError",
    "AsyncTwolane",
    "Block",
    "EmbeddedCorpus",
    "Embeddings",
    "InputError",
    "ItemsFailed",
    "Job",
    "JobEnded",
    "JobOptions",
    "MissingExtra",
    "Model",
    "Ranking",
    "ResultItem",
    "ServerUnreachable",
    "SinkError",
    "Twolane",
    "TwolaneError",
    "UnexpectedAnswer",
    "Webhook",
    "WebhookError",
    "WebhookEvent",
    "verify_webhook",
]
