"""The reference of all settings, written from the settings themselves: `python -m config.reference`.

Owns the text of `.env.example` and `docs/settings.md`; a test fails when a page differs from what is rendered here.
Knows no setting by name: headings come from the section comments of `config/setting_fields.py`, the rest from fields.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, SecretStr

from config.catalog_page import render_catalog_page
from config.setting_fields import SettingFields
from config.settings import Settings

__all__ = ["OUTPUTS", "render_env_example", "render_settings_page"]

_SECTION = re.compile(r"    # -- (?P<title>.+?) -{3,}$")
_FIELD = re.compile(r"    (?P<name>[a-z][a-z0-9_]*): ")
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "array": "list, comma-separated",
    "boolean": "true or false",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One setting as the pages show it; every value is text."""

    section: str
    variable: str
    also: str
    default: str
    values: str
    description: str


def render_env_example() -> str:
    """Return `.env.example`: every setting with its default, commented out."""
    lines = [
        "# Every setting with its default. Copy this file to .env and uncomment what you change.",
        "# Written by `make docs`.",
    ]
    for title, entries in _by_section():
        lines += ["", "", f"# ---- {title} ----"]
        for entry in entries:
            also = f" Also read as {entry.also}." if entry.also else ""
            lines += ["", f"# {entry.description}{also}", f"#{entry.variable}={entry.default}"]
    return "\n".join(lines) + "\n"


def render_settings_page() -> str:
    """Return `docs/settings.md`: one table a section."""
    lines = [
        "# Settings",
        "",
        "Each is read from the environment, from `.env` or from `twolane.toml` (`port = 8000`) in the working",
        "directory; the first of these decides. A name that is no setting is refused with the nearest that is.",
        "An empty value means the default. Settings that contradict each other stop the process at start, which names",
        "both. This page is written by `make docs` from `config/setting_fields.py`.",
    ]
    for title, entries in _by_section():
        lines += [
            "",
            f"## {title[0].upper()}{title[1:]}",
            "",
            "| variable | default | values | meaning |",
            "|---|---|---|---|",
        ]
        lines += [_row(entry) for entry in entries]
    return "\n".join(lines) + "\n"


OUTPUTS = {
    Path(".env.example"): render_env_example,
    Path("docs/settings.md"): render_settings_page,
    Path("docs/catalogue.md"): render_catalog_page,
}


def _row(entry: _Entry) -> str:
    names = f"`{entry.variable}`" + (f" or `{entry.also}`" if entry.also else "")
    default = f"`{entry.default}`" if entry.default else "(empty)"
    return " | ".join(("| " + names, default, entry.values, entry.description.replace("|", "\\|") + " |"))


def _by_section() -> Iterator[tuple[str, list[_Entry]]]:
    entries = list(_entries())
    for title in dict.fromkeys(entry.section for entry in entries):
        yield title, [entry for entry in entries if entry.section == title]


def _entries() -> Iterator[_Entry]:
    properties = Settings.model_json_schema(by_alias=False)["properties"]
    for section, name in _fields_in_order():
        field = Settings.model_fields[name]
        alias = field.validation_alias
        names = (
            [str(choice) for choice in alias.choices]
            if isinstance(alias, AliasChoices)
            else [f"TWOLANE_{name.upper()}"]
        )
        yield _Entry(
            section=section,
            variable=names[0],
            also=" or ".join(names[1:]),
            default=_spell(field.get_default()),
            values=_describe_values(properties[name]),
            description=field.description or "",
        )


def _fields_in_order() -> Iterator[tuple[str, str]]:
    """Yield (section, field name) as they stand in the source: a comment is the only place that knows its section."""
    section = "general"
    for line in inspect.getsource(SettingFields).splitlines():
        if heading := _SECTION.match(line):
            section = heading["title"]
        elif (field := _FIELD.match(line)) and field["name"] in Settings.model_fields:
            yield section, field["name"]


def _spell(default: object) -> str:
    """Return the default as it would stand in the environment."""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, float) and default.is_integer():
        return str(int(default))
    return "" if default is None else str(default)


def _describe_values(schema: Mapping[str, object]) -> str:
    choices = schema.get("enum")
    if isinstance(choices, Iterable):
        return ", ".join(f"`{choice}`" for choice in choices)
    if schema.get("format") == "path" or "anyOf" in schema:
        return "path"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return ", ".join([_TYPES[str(schema["type"])], *bounds])


def main() -> None:
    """Write both files into the working directory."""
    for path, render in OUTPUTS.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
