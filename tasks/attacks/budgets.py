"""Budgets as text: the same in tables, messages, names of cells and MLflow."""

__all__ = ["format_eps", "read_eps"]


def format_eps(eps: float) -> str:
    """``8/255`` where that is what was meant, else a short decimal; ``0`` for clean."""
    of_255 = eps * 255
    if eps == 0:
        return "0"
    if abs(of_255 - round(of_255)) < 1e-6 and round(of_255 / 255, 3) != eps:
        return f"{round(of_255)}/255"
    return f"{eps:.6g}"


def read_eps(text: str) -> float:
    """Return the budget that a text stands for: ``8/255``, or a decimal of six digits as earlier versions wrote it.

    Raises:
        ValueError: It is neither.
    """
    number, slash, divisor = text.partition("/")
    if slash:
        return float(number) / float(divisor)
    eps = float(number)
    whole = round(eps * 255) / 255
    return whole if f"{whole:.6g}" == text else eps
