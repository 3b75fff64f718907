"""Flatness, measured: what the loss does around trained weights; also `sharpkern sharpness`.

`perturb.py` goes to w + ε with any of the package's optimizers, `surface.py` along any direction by the same fused
perturb and restore, `hessian.py` takes Hessian-vector products and `fisher.py` squared gradients. `grid.py` trains over
ρ × η. A loss is a function without arguments that computes it and returns it, without backward. The command: `kinds.py`
is its table of perturbations, `checkpoint.py` loads, `measure.py` makes rows, `figure.py` draws them.
"""

from sharpkern.analysis.command import add_arguments, main
from sharpkern.analysis.estimate import Estimate
from sharpkern.analysis.fisher import fisher_trace
from sharpkern.analysis.grid import grid_cells, run_grid
from sharpkern.analysis.hessian import Hessian, hessian_trace, top_eigenvalue
from sharpkern.analysis.perturb import Sharpness, perturbation_curve, sharpness
from sharpkern.analysis.surface import filter_normalised, loss_surface

__all__ = [
    "Estimate",
    "Hessian",
    "Sharpness",
    "add_arguments",
    "filter_normalised",
    "fisher_trace",
    "grid_cells",
    "hessian_trace",
    "loss_surface",
    "main",
    "perturbation_curve",
    "run_grid",
    "sharpness",
    "top_eigenvalue",
]
