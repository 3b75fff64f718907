"""The training protocols of the papers by name: a new one is a row in the module of its paper."""

from sharpkern.train.presets.preset import Contender, Option, Preset, Printed, Setting, Short
from sharpkern.train.presets.table import PRESETS

__all__ = ["PRESETS", "Contender", "Option", "Preset", "Printed", "Setting", "Short"]
