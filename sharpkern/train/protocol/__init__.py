"""Runs of the presets: what is asked (`request`), the runs (`job`), one of them (`training`), all (`runner`).

`ledger.py` is the CSV file of finished runs, `report.py` the papers' tables with ours beneath, `estimate.py` the plan
of `--dry-run`, `start.py` the weights that fine-tuning starts from.
"""

from sharpkern.train.protocol.estimate import dry_run
from sharpkern.train.protocol.job import Job, jobs
from sharpkern.train.protocol.request import Request
from sharpkern.train.protocol.runner import run

__all__ = ["Job", "Request", "dry_run", "jobs", "run"]
