"""What the web server says of its settings when it starts."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.web_server import _choose_address, _list_settings
from config.settings import Settings
from stack.plan import StackError, make_plan
from tasks.errors import ConfigError
from tasks.storage.filesystem import check_data_folder


def test_changed_settings_are_listed_and_no_secret_is() -> None:
    settings = Settings(
        _env_file=None,
        redis_url="rediss://user:hunter2@queues.example:6380/0",
        flower_password=SecretStr("hunter3"),
        web_threads=70,
    )
    shown = _list_settings(settings)
    assert "web_threads=70" in shown
    assert "queues.example:6380" in shown
    assert "hunter" not in shown
    assert "max_inputs" not in shown


@pytest.mark.parametrize(("host", "bound"), [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
def test_names_and_addresses_are_bound(host: str, bound: str) -> None:
    address, port = _choose_address(Settings(_env_file=None, host=host, port=0))
    assert (address, port > 0) == (bound, True)


@pytest.mark.parametrize("host", ["nothing.invalid", "192.0.2.7"])
def test_a_place_that_cannot_be_bound_is_one_sentence_with_both_settings(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"TWOLANE_HOST={host} with PORT=0 cannot be bound") as refused:
        _choose_address(Settings(_env_file=None, host=host, port=0))
    assert "\n" not in refused.value.message


def test_an_unusable_data_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(_env_file=None, data_dir=tmp_path / "file" / "data", models=("fake",))
    with pytest.raises(ConfigError, match=r"TWOLANE_DATA_DIR=.* cannot be used: Not a directory"):
        check_data_folder(settings)
    with pytest.raises(StackError, match=r"TWOLANE_DATA_DIR=.* cannot be used: Not a directory"):
        make_plan(settings)


@pytest.mark.parametrize("text", ["a,b", "a:b", "geheim-ü", "a\nb"])
def test_what_flower_cannot_compare_is_no_user_and_no_password_of_it(text: str) -> None:
    for fields in ({"flower_user": text}, {"flower_password": SecretStr(text)}):
        with pytest.raises(ValidationError, match="Flower takes only printable ASCII"):
            Settings(_env_file=None, **fields)


def test_the_urls_of_an_ipv6_stack_can_be_opened(tmp_path: Path) -> None:
    plan = make_plan(Settings(_env_file=None, data_dir=tmp_path, host="::1", port=0, models=("fake",)))
    assert plan.url.startswith("http://[::1]:")
