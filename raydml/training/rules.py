"""The numbers of a watched step in, what is wrong with them in words out; one function for each rule of `watch.rules`.

Each is given its rule, the numbers by name and the largest effective rank that the batch could have, and returns None
where the rule holds or where the numbers that it needs were not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raydml.spec import CollapseRule, DeadProxiesRule, ExplodingNormsRule, GapNegativeRule, NoSignalRule

Values = Mapping[str, float]


def collapse(rule: CollapseRule, values: Values, most_rank: int) -> str | None:
    """Embeddings of the whole batch about one point, or on one line."""
    rank, distance = values["effective_rank"], values["spread"]
    least = min(rule.rank, most_rank / 2)
    if rank >= least and distance >= rule.spread:
        return None
    return (
        f"collapse: the embeddings of the batch have effective rank {rank:.2f} of {most_rank} (rule: {least:g}) "
        f"and spread {distance:.2g} (rule: {rule.spread:g}): lower the rate, warm up, mine less hard, or see whether "
        f"the inputs differ"
    )


def no_signal(rule: NoSignalRule, values: Values, most_rank: int) -> str | None:
    """Rows without gradient: nothing is learned of them."""
    if values["silent_rows"] < rule.share:
        return None
    return (
        f"no_signal: {values['silent_rows']:.0%} of the rows get no gradient (rule: {rule.share:.0%}): all tuples are "
        f"solved or the miner finds none: raise the margin, mine otherwise, take larger batches, or stop here"
    )


def dead_proxies(rule: DeadProxiesRule, values: Values, most_rank: int) -> str | None:
    """Classes whose proxies no row comes near."""
    share = values.get("dead_proxies")
    if share is None or share <= rule.share:
        return None
    return (
        f"dead_proxies: of the classes in the last {rule.batches} watched batches {share:.0%} have no proxy that is "
        f"nearest to a row (rule: {rule.share:.0%}): raise the rate of the proxies, train.optimizer.parts: {{loss: 10}}"
    )


def exploding_norms(rule: ExplodingNormsRule, values: Values, most_rank: int) -> str | None:
    """Rows that grow beyond bounds."""
    if values["norm_max"] <= rule.norm:
        return None
    return (
        f"exploding_norms: a row has norm {values['norm_max']:.3g} before normalisation, the mean is "
        f"{values['norm_mean']:.3g} (rule: {rule.norm:g}): lower the rate, clip (train.clip_norm) or use weight_decay"
    )


def gap_negative(rule: GapNegativeRule, values: Values, most_rank: int) -> str | None:
    """Classes that are less alike within than between."""
    gap = values.get("gap")
    if gap is None or gap >= rule.gap:
        return None
    return (
        f"gap_negative: positive pairs are {gap:+.3f} more similar than negative ones (rule: {rule.gap:+g}): see "
        f"whether the labels are right and the loss's distance is the one that is meant"
    )


RULES: dict[str, Callable[..., str | None]] = {
    "collapse": collapse,
    "no_signal": no_signal,
    "dead_proxies": dead_proxies,
    "exploding_norms": exploding_norms,
    "gap_negative": gap_negative,
}
