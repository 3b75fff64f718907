"""The training protocols of the papers by name: a new one is a row in the module of its paper."""

from __future__ import annotations

from collections.abc import Mapping

from sharpkern.train.presets import fisher_sam, g_tracer, sam_as_vi
from sharpkern.train.presets.preset import Contender, Preset, Printed, Setting, Short

PRESETS: Mapping[str, Preset] = {
    preset.name: preset for preset in (*fisher_sam.PRESETS, *g_tracer.PRESETS, *sam_as_vi.PRESETS)
}

__all__ = ["PRESETS", "Contender", "Preset", "Printed", "Setting", "Short"]
