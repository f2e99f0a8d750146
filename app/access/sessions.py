"""Sign-ins of people with a browser: an API key is typed once, a random token in a cookie stands for it afterwards.

Owns sessions in Redis. The token is kept nowhere, its SHA-256 is; the key itself is not kept either, and a key that is
revoked ends its sessions. Knows no cookie and no page (`app.console`).
"""

import hmac
import secrets
from dataclasses import dataclass
from typing import cast

from redis import Redis

from app.access.auth import Authenticator, Tenant, hash_key
from tasks import keys
from tasks.errors import AuthenticationError, PermissionDenied

__all__ = ["SESSION_S", "Session", "Sessions"]

# A day's work: tomorrow needs another sign-in.
SESSION_S = 12 * 3600


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in.

    Attributes:
        token: what the cookie holds.
        csrf: what every form has to send back.
        tenant: whose key was used, with its rights as they are now.
    """

    token: str
    csrf: str
    tenant: Tenant

    def check_csrf(self, sent: str) -> None:
        """Refuse a form that was not made for this session.

        Raises:
            PermissionDenied: it was not.
        """
        if not hmac.compare_digest(sent.encode(), self.csrf.encode()):
            raise PermissionDenied("This form is not from this session: reload the page and try again.")


class Sessions:
    """The sign-ins of all web processes. All methods raise `redis.RedisError` when Redis does not answer."""

    def __init__(self, redis: Redis, authenticator: Authenticator) -> None:
        self._redis = redis
        self._authenticator = authenticator

    @property
    def needs_key(self) -> bool:
        """Whether anybody has to sign in: without keys there is one tenant, who may do everything."""
        return not self._authenticator.is_open

    def begin(self, secret: str) -> Session:
        """Sign in with an API key, or with nothing where there are no keys.

        Raises:
            AuthenticationError: the key is not known.
            PermissionDenied: it is not an admin's.
        """
        digest = hash_key(secret)
        tenant = self._authenticator.find_tenant(digest)
        tenant.require_admin()
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), tenant)
        name = keys.console_session(hash_key(session.token))
        pipeline = self._redis.pipeline()
        pipeline.hset(name, mapping={"key": digest, "csrf": session.csrf})
        pipeline.expire(name, SESSION_S)
        pipeline.execute()
        return session

    def find(self, token: str) -> Session | None:
        """Return the session of a token; None: there is none any more, or its key has been revoked."""
        known = cast("dict[bytes, bytes]", self._redis.hgetall(keys.console_session(hash_key(token))))
        if not token or not known:
            return None
        try:
            tenant = self._authenticator.find_tenant(known[b"key"].decode())
            tenant.require_admin()
        except (AuthenticationError, PermissionDenied):
            return None
        return Session(token, known[b"csrf"].decode(), tenant)

    def end(self, session: Session) -> None:
        """Sign out."""
        self._redis.delete(keys.console_session(hash_key(session.token)))

    def leave_message(self, session: Session, text: str) -> None:
        """Keep what the next page is to say."""
        name = keys.console_session(hash_key(session.token))
        self._redis.hset(name, "message", text)
        self._redis.expire(name, SESSION_S)

    def take_message(self, session: Session) -> str:
        """Return what the next page is to say, once."""
        name = keys.console_session(hash_key(session.token))
        pipeline = self._redis.pipeline()
        pipeline.hget(name, "message")
        pipeline.hdel(name, "message")
        message: bytes | None = pipeline.execute()[0]
        return (message or b"").decode()
