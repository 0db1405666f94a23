"""A run's workers on Ray: where there is room, who is started, watched, replaced and stopped. It knows no training."""
