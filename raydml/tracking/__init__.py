"""A run's numbers -> trackers of other makers. A tracker that fails, or is silent, is told of and fails nothing."""

from __future__ import annotations

from raydml.tracking.tracking import Tracking, check_installed

__all__ = ["Tracking", "check_installed"]
