"""Hooks for trainers, one module each, imported only when used; `sharpkern.passes` is what they have in common."""
