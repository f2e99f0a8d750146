"""What the web server says of its settings when it starts."""

from pydantic import SecretStr

from app.web_server import _list_settings
from config.settings import Settings


def test_changed_settings_are_listed_and_no_secret_is() -> None:
    settings = Settings(
        _env_file=None,
        redis_url="rediss://user:hunter2@queues.example:6380/0",
        flower_password=SecretStr("hunter3"),
        web_threads=7,
    )
    shown = _list_settings(settings)
    assert "web_threads=7" in shown
    assert "queues.example:6380" in shown
    assert "hunter" not in shown
    assert "max_inputs" not in shown
