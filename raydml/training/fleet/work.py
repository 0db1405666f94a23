"""What a worker process runs, whoever started it."""

from __future__ import annotations

from collections.abc import Callable

import torch

Work = Callable[[str, torch.device], str]
"""(the worker's name, its device) -> how it ended: `LEFT`, `LOST`, or anything else for the end of the run.

Must pickle, and raises only for what nobody foresaw: the process is then replaced.
"""
