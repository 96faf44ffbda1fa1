"""What the numbers of a recipe may be."""

import math
from typing import Any


def check_least(recipe: Any, least: int, *names: str) -> None:
    """Raise a ValueError for the first of these fields that is below `least`."""
    for name in names:
        if getattr(recipe, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(recipe, name)}")


def check_positive(recipe: Any, *names: str) -> None:
    """Raise a ValueError for the first of these fields that is not positive and finite."""
    for name in names:
        if not 0 < getattr(recipe, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(recipe, name)}")


def check_not_negative(recipe: Any, *names: str) -> None:
    """Raise a ValueError for the first of these fields that is negative or not finite."""
    for name in names:
        if not 0 <= getattr(recipe, name) < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {getattr(recipe, name)}")


def check_share(recipe: Any, *names: str) -> None:
    """Raise a ValueError for the first of these fields that is outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(recipe, name)}")


def check_parts(recipe: Any) -> None:
    """Raise a ValueError where `accumulate` does not divide `batch_size`."""
    if recipe.batch_size % recipe.accumulate:
        raise ValueError(
            f"accumulate must divide the batch of {recipe.batch_size}, got {recipe.accumulate}; choose a divisor"
        )
