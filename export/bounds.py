"""Valid p-values and confidence limits from counts, without a normal approximation.

`binomial_p` tests a 0/1 loss, `difference_p` a loss in {-1, 0, 1}. A p-value is valid when P(p <= u) <= u for every u,
for every distribution in its null hypothesis; that is all that `export.guarantee` needs.

Sources: Angelopoulos, Bates, Candes, Jordan, Lei, *Learn then Test* (2021), section 2 (p-values for a risk); Clopper
and Pearson, *The use of confidence or fiducial limits* (1934); Berger and Boos, *P values maximized over a confidence
set for the nuisance parameter* (1994); Darroch, *On the distribution of the number of successes in independent trials*
(1964).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Counts = NDArray[np.int64]
Values = NDArray[np.float64]

SPREAD = 12.0  # standard deviations of a binomial that are summed term by term; the rest is added as a whole


def binomial_p(losses: Any, samples: Any, eps: float) -> Values:
    """Test whether losses of 0 and 1 are at most `eps` in the mean.

    The null is E[loss] >= eps. The count of n independent losses is then stochastically at least Bin(n, eps), so
    P(Bin(n, eps) <= count) is a valid p-value, exact at the border. Hoeffding's and Bentkus' bounds, which *Learn then
    Test* uses for losses in [0, 1], are upper bounds of this tail for losses in {0, 1}, and so less powerful.

    Args:
        losses: counts, any shape.
        samples: how many losses, of the same shape or one; at 0 nothing is known, and p is 1.
        eps: in (0, 1).
    """
    p: Values = np.asarray(stats.binom.cdf(losses, samples, eps), np.float64)
    return p


def difference_p(losses: Any, gains: Any, samples: Any, eps: float, beta: float) -> Values:
    """Test whether losses of -1, 0 and 1 are at most `eps` in the mean.

    The null is b - g >= eps, with b = P(loss = 1) and g = P(loss = -1). Let D be the losses' sum. For a given g the
    border b = g + eps is the worst case, since a larger b makes D stochastically larger. As a function of g there,
    d/dg P(D_n <= d) = n [P(D_{n-1} = d + 1) - P(D_{n-1} = d)]. For g <= (1 - eps)^2 / 4 the polynomial
    g + (1 - b - g) z + b z^2 has real roots, so D_{n-1} + n - 1 is a sum of independent Bernoulli variables, whose
    probabilities rise up to the whole part of their mean at least (Darroch). So for d + 1 <= floor((n - 1) eps) the
    tail P(D_n <= d) grows with g, and its maximum over g <= G is at G. G is Clopper and Pearson's upper limit of g at
    level `beta`, which fails with probability at most beta; adding beta to the p-value pays for that (Berger and Boos).
    Where d or G is larger, p is 1.

    Compared with testing b alone by `binomial_p`, which is valid as well since b >= b - g, this credits what the
    cascade gains by leaving early. Hoeffding's bound for [-1, 1] would not know that most losses are 0.

    Args:
        losses: how many are 1, any shape.
        gains: how many are -1.
        samples: how many there are in all.
        eps: in (0, 1).
        beta: share of the error budget for the nuisance parameter; fixed beforehand.
    """
    arrays = np.broadcast_arrays(*(np.asarray(each, np.int64) for each in (losses, gains, samples)))
    cases, which = np.unique(np.stack([each.ravel() for each in arrays]), axis=1, return_inverse=True)
    lost, gained, drawn = cases
    most, difference = upper_limit(gained, drawn, beta), lost - gained
    usable = (difference + 1 <= np.floor((drawn - 1) * eps)) & (most <= (1 - eps) ** 2 / 4) & (drawn > 0)
    p = np.ones(len(lost), np.float64)
    if usable.any():
        p[usable] = beta + _difference_tail(difference[usable], drawn[usable], most[usable] + eps, most[usable])
    result: Values = np.minimum(p, 1.0)[which.ravel()].reshape(arrays[0].shape)
    return result


def _difference_tail(most: Counts, samples: Counts, up: Values, down: Values) -> Values:
    """P(D <= most) for D a sum of `samples` steps of +1 and -1 with probabilities `up` and `down`; (R,) of each.

    Given that M steps are not 0, the number of +1 among them is binomial, and D <= d means at most (M + d) / 2 of them.
    """
    share = up + down
    mean, deviation = samples * share, np.sqrt(samples * share * (1 - share))
    lowest = np.maximum(0, np.floor(mean - SPREAD * deviation - 1)).astype(np.int64)
    steps = np.arange(int(np.ceil(2 * SPREAD * deviation.max() + 3)))
    moves = lowest[:, None] + steps
    weights = stats.binom.pmf(moves, samples[:, None], share[:, None])
    tails = stats.binom.cdf((moves + most[:, None]) // 2, moves, (up / share)[:, None])
    outside = stats.binom.cdf(lowest - 1, samples, share) + stats.binom.sf(moves[:, -1], samples, share)
    total: Values = (weights * tails).sum(axis=1) + outside
    return total


def upper_limit(count: Any, samples: Any, alpha: float) -> Values:
    """Clopper and Pearson's one-sided upper limit of a share: below the truth with probability at most `alpha`."""
    count, samples = np.asarray(count, np.float64), np.asarray(samples, np.float64)
    with np.errstate(invalid="ignore"):
        limit = stats.beta.ppf(1 - alpha, count + 1, samples - count)
    return np.where(count >= samples, 1.0, limit)


def lower_limit(count: Any, samples: Any, alpha: float) -> Values:
    """Clopper and Pearson's one-sided lower limit of a share."""
    count, samples = np.asarray(count, np.float64), np.asarray(samples, np.float64)
    return 1 - upper_limit(samples - count, samples, alpha)


def fewest(p_value: Callable[[int], float], level: float) -> int:
    """The smallest number of samples at which `p_value`, which falls with that number, is at most `level`."""
    low, high = 1, 2
    while p_value(high) > level:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if p_value(middle) > level else (low, middle)
    return low
