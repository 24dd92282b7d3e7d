"""API keys: read from the environment for each request, and kept out of every text."""

import os
from typing import Any


def read_api_key(variable: str | None) -> str | None:
    """The API key that the environment holds under this name. Raises ValueError that names the variable, never the key.

    It is read for each request, so that no object, file or log has it.
    """
    if variable is None:
        return None
    if not variable.isidentifier():
        # Perhaps the key itself was given in place of a name: it must not be repeated.
        raise ValueError(
            "api_key_variable is not the name of an environment variable: give a name like OPENAI_API_KEY, never the "
            "key itself"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable} is empty or not set: put the server's API key there")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"the environment variable {variable} holds characters that no API key has: set it again")
    return key


def without_key(key: str | None, said: Any) -> Any:
    """What a server said, text or JSON, without the key, which some servers repeat in errors and names."""
    if key is None:
        return said
    if isinstance(said, str):
        return said.replace(key, "(the API key)")
    if isinstance(said, dict):
        return {without_key(key, name): without_key(key, value) for name, value in said.items()}
    return [without_key(key, value) for value in said] if isinstance(said, list) else said
