"""A spec with a section `tune` in; trials on Ray Tune, a leaderboard of configurations and one trained winner out."""
