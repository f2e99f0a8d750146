"""Where settings are read from: the environment, `.env`, then `twolane.toml`, and what is misspelt there.

Owns the order and the names that are none of ours. What a setting is stands in `config.settings`.
"""

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

__all__ = ["CONFIG_FILE", "UNKNOWN", "explain_unknown", "order_sources"]

CONFIG_FILE = "twolane.toml"
# Under this key a source hands over names that are no settings; the settings refuse them with a sentence.
UNKNOWN = "unknown_names"
_PREFIX = "twolane_"
# The client's own.
_OTHERS = frozenset({"twolane_url", "twolane_api_key", "twolane_model"})


class _Environment(EnvSettingsSource):
    """Variables of the process."""

    def __call__(self) -> dict[str, Any]:
        return _with_unknown(super().__call__(), _unknown_variables(self))


class _DotEnv(DotEnvSettingsSource):
    """Lines of `.env`."""

    def __call__(self) -> dict[str, Any]:
        return _with_unknown(super().__call__(), _unknown_variables(self))


class _File(TomlConfigSettingsSource):
    """`twolane.toml`, with names in small letters and without the prefix."""

    def __call__(self) -> dict[str, Any]:
        return _with_unknown(super().__call__(), set(self.toml_data) - set(self.settings_cls.model_fields))


def order_sources(
    settings: type[BaseSettings], given: PydanticBaseSettingsSource, dotenv: PydanticBaseSettingsSource
) -> tuple[PydanticBaseSettingsSource, ...]:
    """Return the sources of the settings, the one that decides first.

    Args:
        settings: the class.
        given: the arguments of its construction.
        dotenv: the library's source, which knows the file that is asked for.
    """
    file = dotenv.env_file if isinstance(dotenv, DotEnvSettingsSource) else None
    return given, _Environment(settings), _DotEnv(settings, env_file=file), _File(settings, CONFIG_FILE)


def explain_unknown(names: Collection[str], fields: Iterable[str]) -> str:
    """Return the sentence that refuses names which are no settings, each with the nearest that is one."""
    ours = [f"{_PREFIX}{field}".upper() for field in fields]
    return "; ".join(_explain(name, ours) for name in sorted(names))


def _explain(name: str, ours: list[str]) -> str:
    wanted = name if name.startswith(_PREFIX.upper()) else f"{_PREFIX}{name}".upper()
    near = difflib.get_close_matches(wanted, ours, n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/settings.md lists them"
    return f"{name} is no setting: {hint}"


def _unknown_variables(source: EnvSettingsSource) -> list[str]:
    known = {f"{_PREFIX}{field}" for field in source.settings_cls.model_fields} | _OTHERS
    names = {name.lower() for name in source.env_vars if name.lower().startswith(_PREFIX)}
    return [name.upper() for name in names - known]


def _with_unknown(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    unknown = list(names)
    return {**values, UNKNOWN: unknown} if unknown else values
