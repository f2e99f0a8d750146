"""The settings page and `.env.example` say what the settings are."""

import os
import re
from pathlib import Path

import pytest

from config.reference import OUTPUTS, render_env_example, render_settings_page
from config.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", OUTPUTS, ids=str)
def test_the_written_page_is_what_the_settings_say(path: Path) -> None:
    assert (ROOT / path).read_text("utf-8") == OUTPUTS[path](), f"{path} is out of date: run `make docs`"


@pytest.mark.parametrize("render", [render_env_example, render_settings_page])
def test_every_setting_is_on_the_page(render: type) -> None:
    page = render()
    assert [name for name in Settings.model_fields if f"TWOLANE_{name.upper()}" not in page] == []


def test_the_example_uncommented_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TWOLANE_") or name in {"PORT", "REDIS_URL"}]:
        monkeypatch.delenv(name)
    example = tmp_path / ".env"
    example.write_text(
        re.sub(r"^#(TWOLANE_)", r"\1", (ROOT / ".env.example").read_text("utf-8"), flags=re.MULTILINE), "utf-8"
    )
    assert Settings(_env_file=example) == Settings(_env_file=None)


def test_every_setting_has_a_description_that_is_a_sentence() -> None:
    bad = [
        name for name, field in Settings.model_fields.items() if not (field.description or "").rstrip().endswith(".")
    ]
    assert bad == []
