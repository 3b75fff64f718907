"""`sharpkern toy`: the loss with a flat and a sharp minimum of [F] 3.1 and [V] Fig. 1, and the ways to them.

`loss.py` is the loss, its minima and its smoothed forms, `path.py` the trajectories, `figure.py` draws both from the
CSV files that `command.py` writes.
"""

from sharpkern.toy.command import add_arguments, main
from sharpkern.toy.loss import SMOOTHED, Minimum, fisher, loss, minima
from sharpkern.toy.path import SCENES, Scene, Step, trajectory

__all__ = [
    "SCENES",
    "SMOOTHED",
    "Minimum",
    "Scene",
    "Step",
    "add_arguments",
    "fisher",
    "loss",
    "main",
    "minima",
    "trajectory",
]
