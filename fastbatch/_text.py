"""Words of messages."""

from __future__ import annotations

__all__ = ["counted", "there_are"]


def counted(number: int, noun: str) -> str:
    """The number with its noun, which is plural unless there is one: "1 sample", "2 batches"."""
    plural = noun + ("es" if noun.endswith(("s", "ch")) else "s")
    return f"{number} {noun if number == 1 else plural}"


def there_are(number: int, noun: str) -> str:
    """As `counted`, in a sentence: "there is 1 sample", "there are 2 samples"."""
    return f"there {'is' if number == 1 else 'are'} {counted(number, noun)}"
