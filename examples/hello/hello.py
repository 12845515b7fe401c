"""Greets whoever is named."""


def greet(*names: str) -> str:
    """Return one greeting for all names, or for the world when there are none."""
    if not names:
        return "Hello, world!"
    *first, last = names
    return "Hello, " + (", ".join(first) + " and " if first else "") + last + "!"
