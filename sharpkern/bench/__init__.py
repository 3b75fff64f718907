"""`sharpkern bench`: ops against a copy, whole steps against the peers, measured in turns in one process.

`shapes.py` has the networks, `candidates.py` the table of whole steps and `operations.py` that of ops, `traffic.py`
counts their bytes, `measure.py` takes turns and times, and `suite.py` makes rows of them. `overhead.py` times whole
training steps. `figure.py` draws from rows alone. rich, matplotlib and the peers are imported when
a run starts, not before.
"""

from sharpkern.bench.command import add_arguments, main
from sharpkern.bench.options import Options

__all__ = ["Options", "add_arguments", "main"]
