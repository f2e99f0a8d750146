"""The settings page and `.env.example` say what the settings are."""

import os
import re
from pathlib import Path

import pytest

from config.reference import OUTPUTS, render_env_example, render_settings_page
from config.settings import Settings, SettingsError, load_settings

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


def test_a_misspelt_setting_is_refused_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twolane.toml").write_text("prot = 3", "utf-8")
    (tmp_path / ".env").write_text("TWOLANE_LEASES=3", "utf-8")
    with pytest.raises(SettingsError, match=r"^TWOLANE_LEASES is no setting: did you mean TWOLANE_LEASE_S\?$"):
        load_settings()
    (tmp_path / ".env").unlink()
    with pytest.raises(SettingsError, match=r"^prot is no setting: did you mean TWOLANE_PORT\?$"):
        load_settings()
    monkeypatch.setenv("TWOLANE_MODLES", "a")
    with pytest.raises(SettingsError, match=r"TWOLANE_MODLES is no setting: did you mean TWOLANE_MODELS\?"):
        load_settings()


def test_a_wrong_value_is_one_sentence_with_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOLANE_PORT", "secret")
    with pytest.raises(SettingsError, match=r"^TWOLANE_PORT: Input should be a valid integer[^\n]*$") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_the_environment_goes_before_env_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twolane.toml").write_text('models = ["a", "b"]\nlease_s = 1\nwindow = 1', "utf-8")
    (tmp_path / ".env").write_text("TWOLANE_LEASE_S=2\nTWOLANE_WINDOW=2", "utf-8")
    monkeypatch.setenv("TWOLANE_WINDOW", "3")
    monkeypatch.setenv("TWOLANE_URL", "http://of-the-client")
    settings = load_settings()
    assert (settings.models, settings.lease_s, settings.window) == (("a", "b"), 2, 3)
