"""Budgets as users write them: `latency:0.5`, `macs:0.3`, `params:0.25`, `params:100000` or `bytes:100000`."""

from collections.abc import Iterable
from dataclasses import dataclass

from pbd.errors import UsageError, unknown_name

LATENCY, BYTES = "latency", "bytes"
RESOURCES = {LATENCY: "latency", "macs": "multiply-accumulates", "params": "parameters", BYTES: "bytes"}
"""Resources that a budget can limit, with their names in reports."""
MEASURED = (LATENCY, BYTES)
"""Predicted from the pieces of a network for its choice, and then measured: the latency and the file in the target."""


@dataclass(frozen=True)
class Budget:
    """The most of a resource that a student may need."""

    resource: str
    """One of `RESOURCES`."""
    amount: float
    """Up to 1: a fraction of what the teacher needs; above, an absolute amount. Latency is always a fraction."""

    def limit(self, of_teacher: float) -> float:
        """Return the largest allowed cost.

        Args:
            of_teacher: the teacher's cost.
        """
        is_fraction = self.amount <= 1.0 or self.resource == LATENCY
        return self.amount * of_teacher if is_fraction else self.amount

    def __str__(self) -> str:
        return f"{self.resource}:{self.amount:g}"


def parse(text: str) -> Budget:
    """Return the budget that a text such as `latency:0.5` describes.

    Raises:
        UsageError: it describes none.
    """
    resource, _, amount = text.partition(":")
    if resource not in RESOURCES:
        raise UsageError(unknown_name("budget", resource, RESOURCES))
    try:
        number = float(amount)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf") or (resource == LATENCY and number > 1.0):
        most = "a fraction of the teacher's" if resource == LATENCY else "a fraction of the teacher's or an amount"
        raise UsageError(f"a budget is RESOURCE:{most}. Received: {text!r}. Give {resource}:0.5, for example.")
    return Budget(resource, number)


def check(texts: Iterable[str]) -> None:
    """Check several budgets, which must limit different resources.

    Raises:
        UsageError: one is none, or two limit the same resource.
    """
    resources = [parse(text).resource for text in texts]
    if len(set(resources)) < len(resources):
        raise UsageError(f"budgets must limit different resources. Received: {', '.join(texts)}. Give each once.")


def sweep(text: str) -> tuple[str, ...]:
    """Return the budgets of a sweep: those of `latency:0.8,0.6` are `latency:0.8` and `latency:0.6`.

    Raises:
        UsageError: one is no budget, or is there twice.
    """
    resource, _, amounts = text.partition(":")
    texts = tuple(f"{resource}:{amount.strip()}" for amount in amounts.split(","))
    if len({parse(each) for each in texts}) < len(texts):
        raise UsageError(f"the budgets of a sweep must differ. Received: {text!r}. Give each amount once.")
    return texts
