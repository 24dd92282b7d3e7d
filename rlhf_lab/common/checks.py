"""Checks of settings that several dataclasses share: each raises ValueError that names the field."""


def check_lowest(settings: object, lowest: dict[str, int]) -> None:
    """Raises ValueError that names a number below its lowest value; None passes."""
    for name, low in lowest.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise ValueError(f"{name}={value}: must be {low} or more")


def check_choices(settings: object, choices: dict[str, tuple[str | None, ...]]) -> None:
    """Raises ValueError that names a value which is none of its choices."""
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name}={getattr(settings, name)!r}: must be one of {', '.join(map(str, allowed))}")
