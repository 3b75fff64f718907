"""A mean that was sampled, with its standard error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, in the units of what was averaged.

    Attributes:
        mean: The mean.
        error: Its standard error; NaN for a single value.

    Examples:
        >>> print(Estimate.of([1.0, 2.0, 3.0]), Estimate.of([2.0]))
        2 ± 0.58 2
    """

    mean: float
    error: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """The mean of independent values and s/sqrt(n), s their standard deviation."""
        values = list(values)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), error)

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if math.isnan(self.error) else f" ± {self.error:.2g}")
