"""`sharpkern train`: handwritten digits by every method of a table, or the papers' training protocols as presets.

The comparison: `methods.py` is its table, and a new method is a row there; `network.py` is the network, `experiment.py`
one training run and all of them, `report.py` the table, the CSV files and the figure, `command.py` the command line.
The presets: `presets` holds them, a paper a module; `networks` what they train; `protocol` runs, plans and reports.
`data` has the images of both. scikit-learn, rich, Pillow and matplotlib are imported when a run starts, not before.
"""

from sharpkern.train.command import add_arguments, main
from sharpkern.train.experiment import run
from sharpkern.train.methods import METHODS, Method
from sharpkern.train.options import Options
from sharpkern.train.results import Result, Run

__all__ = ["METHODS", "Method", "Options", "Result", "Run", "add_arguments", "main", "run"]
