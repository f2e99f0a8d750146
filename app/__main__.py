"""`python -m app`: run the web server with settings from the environment."""

import sys

from pydantic import ValidationError

from app.web_server import run_server
from config.keyring import KeyringError
from config.settings import SettingsError, load_settings
from tasks.errors import ConfigError


def _main() -> int:
    try:
        run_server(load_settings())
    except (ConfigError, KeyringError, SettingsError, ValidationError) as error:
        print(f"the web server does not start: {error}", file=sys.stderr)  # noqa: T201 - for the operator
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
