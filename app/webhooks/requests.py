"""What a caller asks of a webhook: a URL and perhaps a secret, checked before the job is taken.

Owns the refusals. What can only be known by asking for the name's addresses is found out when the job has ended.
"""

from app.webhooks.signing import check_secret, make_secret
from app.webhooks.targets import ForbiddenTarget, parse_target
from tasks.errors import InvalidRequest
from tasks.jobs.model import Webhook

__all__ = ["choose_webhook"]


def choose_webhook(url: str, secret: str | None, *, allow_private: bool) -> Webhook:
    """Return the webhook, with a new secret where none was given.

    Raises:
        InvalidRequest: we do not send to such a URL, or the secret has not the form of one.
    """
    try:
        parse_target(url, allow_private=allow_private)
    except ForbiddenTarget as error:
        raise InvalidRequest(f"the webhook's url {error}", param="webhook.url") from error
    try:
        return Webhook(url, check_secret(secret) if secret else make_secret())
    except ValueError as error:
        raise InvalidRequest(f"the webhook's secret {error}", param="webhook.secret") from error
