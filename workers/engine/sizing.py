"""How large a pass may be, given what passes cost: pure functions.

Owns the balance between how long a call waits and how much work a device does. A call waits for the pass that runs and
then for its own, so short passes answer sooner; but every pass pays the fixed part again, so short passes do less work.
A pass of fixed + work = 2 * fixed has the best ratio of work done to time waited (Kleinrock's power, 1979: the product
of throughput and inverse delay); below it both get worse. So no pass is kept shorter than that, whatever the target.
The whole rule is in docs/decisions/0024-passes-that-follow-their-cost.md.
"""

from workers.engine.cost import PassCost

__all__ = ["MOST_GROWTH", "fill_tokens", "full_tokens", "shared_pass_tokens", "short_pass_tokens", "worthwhile_padding"]

# How much larger than the device's usual budget a pass may grow where even that would mostly be fixed cost.
MOST_GROWTH = 4
# Many waiting calls get a pass that does at least this share of the work per second of a full one.
_CALLS_KEEP = 0.9
# What a call may cost a job: the fixed part of the call's own pass, and the work that is lost to shorter bulk passes.
# Where the former is much already, the latter is still allowed to be the least.
_LOSS_PER_CALL_S, _LEAST_LOSS_PER_CALL_S = 0.15, 0.05
# Fewer calls count as so many.
_FEW_CALLS_PER_S = 0.5


def full_tokens(cost: PassCost, budget_tokens: int) -> int:
    """Return the padded tokens of a pass that nobody waits behind.

    Args:
        cost: of passes of this model and length.
        budget_tokens: from the settings or the kind of device.
    """
    return round(min(max(budget_tokens, _half_fixed(cost)), MOST_GROWTH * budget_tokens))


def short_pass_tokens(cost: PassCost, most_tokens: int, pass_ms: float, calls_per_s: float) -> int:
    """Return the padded tokens of a bulk pass while calls come.

    Args:
        cost: of passes of this model and length.
        most_tokens: of a full pass.
        pass_ms: how long a pass should take at most.
        calls_per_s: how many calls come; few calls must not cost a job much, however slow the device is.
    """
    loss_s = max(_LOSS_PER_CALL_S - cost.fixed_ms / 1000, _LEAST_LOSS_PER_CALL_S)
    keep = 1 - loss_s * max(calls_per_s, _FEW_CALLS_PER_S)
    return _at_most(most_tokens, max(_within(cost, pass_ms), _working(cost, most_tokens, keep)))


def shared_pass_tokens(cost: PassCost, most_tokens: int, pass_ms: float) -> int:
    """Return the padded tokens of a pass for waiting calls: as many of them as it takes to keep up with what comes."""
    return _at_most(most_tokens, max(_within(cost, pass_ms), _working(cost, most_tokens, _CALLS_KEEP)))


def fill_tokens(cost: PassCost, most_tokens: int) -> int:
    """Return up to how many padded tokens a pass for calls takes bulk rows along: until half of it is fixed cost.

    Bulk rows in it need no pass of their own, and the calls are answered after at most twice the time.
    """
    return _at_most(most_tokens, _half_fixed(cost))


def worthwhile_padding(cost: PassCost, most_tokens: int) -> float:
    """Return the tokens of padding for each real one that cost as much as the passes that they save.

    A real token in a pass that runs anyway saves its part of a full pass's fixed cost.
    """
    return cost.fixed_ms / (cost.ms_per_token * most_tokens)


def _half_fixed(cost: PassCost) -> float:
    return cost.fixed_ms / cost.ms_per_token


def _within(cost: PassCost, pass_ms: float) -> float:
    return (max(pass_ms, 2 * cost.fixed_ms) - cost.fixed_ms) / cost.ms_per_token


def _working(cost: PassCost, most_tokens: int, share: float) -> float:
    """Return the tokens t of the smallest pass with t / ms(t) >= share * most / ms(most)."""
    if share <= 0:
        return 0.0
    rest = cost.fixed_ms + cost.ms_per_token * most_tokens * (1 - share)
    return share * cost.fixed_ms * most_tokens / rest if rest > 0 else 0.0


def _at_most(most_tokens: int, tokens: float) -> int:
    return max(1, int(min(most_tokens, tokens)))
