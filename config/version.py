"""The version of the product, as it is installed."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["read_version"]


def read_version() -> str:
    """Return the version of `twolane-server`; 0 in a checkout that was not installed."""
    try:
        return version("twolane-server")
    except PackageNotFoundError:
        return "0"
