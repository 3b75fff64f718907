"""All presets by name."""

from __future__ import annotations

from collections.abc import Mapping

from sharpkern.train.presets import fisher_sam, g_tracer, sam_as_vi
from sharpkern.train.presets.preset import Preset

PRESETS: Mapping[str, Preset] = {
    preset.name: preset for preset in (*fisher_sam.PRESETS, *g_tracer.PRESETS, *sam_as_vi.PRESETS)
}
