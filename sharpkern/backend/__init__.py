"""One folder a backend: a module with the ops of `sharpkern.ops.Ops`."""
