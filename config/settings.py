"""One frozen Settings object, built once per process and passed in.

Owns the order of the sources and what is refused together; the fields are in `config.setting_fields`. Owns no
connection and reads nothing at import.
"""

from functools import partial
from typing import Self, cast

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from config.redis_url import RedisAddress
from config.setting_fields import SettingFields
from config.setting_sources import UNKNOWN, explain_unknown, order_sources

__all__ = ["Settings", "SettingsError", "load_settings"]


class Settings(SettingFields):
    """All settings. Each is read from the environment (prefix `TWOLANE_`), from a `.env` file or from `twolane.toml`.

    Raises:
        pydantic.ValidationError: a value has the wrong type, a name is misspelt, or two settings contradict each other.
    """

    model_config = SettingsConfigDict(
        env_prefix="TWOLANE_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        # What was set may be a password, and these errors are printed.
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours looks at the names too
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not used
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See pydantic-settings: the sources, the one that decides first."""
        return order_sources(settings_cls, init_settings, dotenv_settings)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: dict[str, object]) -> dict[str, object]:
        if names := values.pop(UNKNOWN, ()):
            raise ValueError(explain_unknown(cast("list[str]", names), cls.model_fields))
        return values

    @field_validator("host")
    @classmethod
    def _read_host(cls, host: str) -> str:
        return host.strip().removeprefix("[").removesuffix("]")

    @field_validator("flower_user", "flower_password")
    @classmethod
    def _check_flower(cls, value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        # Flower splits its users at commas and colons, and fails at every login on other characters.
        if not text.isascii() or not text.isprintable() or "," in text or ":" in text:
            raise ValueError("Flower takes only printable ASCII without `,` and `:` for user and password")
        return value

    @field_validator("redis_url")
    @classmethod
    def _read_redis_url(cls, url: str) -> str:
        return RedisAddress.parse(url).url if url.strip() else ""

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for field in ("models", "pinned_models", "cors_origins", "allowed_hosts"):
            names = values.get(field)
            if isinstance(names, str):
                values[field] = tuple(name.strip() for name in names.split(",") if name.strip())
        return values

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        require = partial(_require, self)
        require("interactive_max_items", "max_inputs")
        require("interactive_max_tokens", "lane_max_tokens")
        require("interactive_max_tokens", "engine_max_tokens")
        require("max_line_bytes", "max_upload_bytes")
        require("max_body_bytes", "body_memory_bytes")
        require("lease_s", "job_ttl_s")
        # A character takes four bytes at most, escaped in JSON twelve (twice \\uXXXX); to rerank there are two texts.
        _require_room(self, "max_call_bytes", 2 * 4)
        _require_room(self, "max_line_bytes", 2 * 12)
        _require_room(self, "max_body_bytes", 2 * 12)
        if self.workers_per_device * self.device_memory_share > 1:
            workers = f"TWOLANE_WORKERS_PER_DEVICE={self.workers_per_device}"
            names = f"{workers} and TWOLANE_DEVICE_MEMORY_SHARE={self.device_memory_share}"
            raise ValueError(f"{names} contradict each other: together the workers get more than the whole device")
        if not self.models:
            raise ValueError("TWOLANE_MODELS is empty: name at least one model of the catalogue")
        return self


def _require_room(settings: Settings, name: str, bytes_per_char: int) -> None:
    """Raise ValueError, naming both settings, unless a limit in bytes has room for texts as long as they may be."""
    limit, most_chars = getattr(settings, name), settings.max_text_chars
    if limit < bytes_per_char * most_chars:
        pair = f"TWOLANE_{name.upper()}={limit} and TWOLANE_MAX_TEXT_CHARS={most_chars}"
        needed = f"texts of so many characters may take {bytes_per_char * most_chars} bytes there"
        raise ValueError(f"{pair} contradict each other: {needed}")


class SettingsError(Exception):
    """The settings cannot be used; the message is for the operator."""


def load_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: a value is wrong, a name is misspelt, or two settings contradict each other.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from error


def _describe(problem: ErrorDetails) -> str:
    """Return one problem with the variable's name, and without its value, which may be a password."""
    message = problem["msg"].removeprefix("Value error, ")
    name = str(problem["loc"][0]) if problem["loc"] else ""
    variable = name if name.isupper() else f"TWOLANE_{name.upper()}"
    return f"{variable}: {message}" if name else message


def _require(settings: Settings, smaller: str, larger: str) -> None:
    """Raise ValueError, naming both settings, unless the first is at most the second."""
    low, high = getattr(settings, smaller), getattr(settings, larger)
    if low > high:
        names = f"TWOLANE_{smaller.upper()}={low} and TWOLANE_{larger.upper()}={high}"
        raise ValueError(f"{names} contradict each other: the first must not be larger than the second")
