"""`sharpkern train`: handwritten digits, clean and with flipped labels, by every method of a table.

`methods.py` is the table, and a new method is a row there. `data.py` has the images, `network.py` the network,
`experiment.py` one training run and all of them, `report.py` the table, the CSV files and the figure, and
`command.py` the command line. scikit-learn, rich and matplotlib are imported when a run starts, not before.
"""

from sharpkern.train.command import add_arguments, main
from sharpkern.train.experiment import run
from sharpkern.train.methods import METHODS, Method
from sharpkern.train.options import MissingExtraError, Options
from sharpkern.train.results import Result, Run

__all__ = ["METHODS", "Method", "MissingExtraError", "Options", "Result", "Run", "add_arguments", "main", "run"]
