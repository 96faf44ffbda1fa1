"""An error as one sentence."""


def sentence(error: BaseException) -> str:
    """Say an error in one line: its first, led by the kind of error where that is part of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    return lines[0] if isinstance(error, ValueError | RuntimeError) else f"{name}: {lines[0]}"
