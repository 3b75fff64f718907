"""The networks of the presets: `table.py` names them, the other modules define them."""

from sharpkern.train.networks.table import NETWORKS, Network, make

__all__ = ["NETWORKS", "Network", "make"]
