"""The losses once more, in NumPy's float64 and in plain loops, straight from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def normalised(vector: Array) -> Array:
    """x / max(|x|, 1e-12)."""
    return vector / max(float(np.sqrt((vector**2).sum())), 1e-12)


def pooled(x: Array, side: int) -> Array:
    """(B, C, H, H) -> (B, C, side, side) by adaptive average pooling."""
    size = x.shape[2]
    cells = [(cell * size // side, math.ceil((cell + 1) * size / side)) for cell in range(side)]
    return np.stack([np.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in cells], axis=-1) for a, b in cells], axis=-2)


def matched(s: Array, t: Array) -> tuple[Array, Array]:
    side = min(s.shape[2], t.shape[2])
    return pooled(s, side), pooled(t, side)


def hint(s: Array, t: Array) -> float:
    return float(((s - t) ** 2).mean())


def at(s: Array, t: Array) -> float:
    total, count = 0.0, 0
    for one, other in zip(*matched(s, t), strict=True):
        a, b = (normalised((x**2).mean(0).ravel()) for x in (one, other))
        total, count = total + float(((a - b) ** 2).sum()), count + a.size
    return total / count


def sp(s: Array, t: Array) -> float:
    def similar(x: Array) -> Array:
        return np.stack([normalised(np.array([(a * b).sum() for b in x])) for a in x])

    return float(((similar(t) - similar(s)) ** 2).sum()) / len(s) ** 2


def cc(s: Array, t: Array) -> float:
    d = abs(s - t)
    return sum(float((d[b] * d[b + 1]).sum()) for b in range(len(d) - 1)) / (len(d) - 1)


def vid(mean: Array, variance: Array, t: Array) -> float:
    total = 0.0
    for channel, v in enumerate(variance):
        total += float((0.5 * ((mean[:, channel] - t[:, channel]) ** 2 / v + np.log(v))).sum())
    return total / t.size


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd_distance(s: Array, t: Array) -> float:
    def distances(x: Array) -> Array:
        found = np.array([[np.sqrt(max(((a - b) ** 2).sum(), 1e-12)) for b in x] for a in x])
        np.fill_diagonal(found, 0)
        scaled: Array = found / found[found > 0].mean()
        return scaled

    apart = distances(s) - distances(t)
    return float(np.mean([huber(x) for x in apart.ravel()]))


def rkd_angle(s: Array, t: Array) -> float:
    def cosine(x: Array, i: int, j: int, k: int) -> float:
        return float(normalised(x[i] - x[j]) @ normalised(x[k] - x[j]))

    places = range(len(s))
    triples = [(i, j, k) for i in places for j in places for k in places]
    return float(np.mean([huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples]))


def pkt(s: Array, t: Array) -> float:
    def neighbours(x: Array) -> Array:
        rows = np.stack([row / (np.sqrt((row**2).sum()) + 1e-7) for row in x])
        kernel = (rows @ rows.T + 1) / 2
        return np.stack([row / row.sum() for row in kernel])

    p, q = neighbours(t), neighbours(s)
    return float((p * np.log((p + 1e-7) / (q + 1e-7))).mean())


def nst(s: Array, t: Array) -> float:
    def kernel(one: list[Array], other: list[Array]) -> float:
        return float(np.mean([(a @ b) ** 2 for a in one for b in other]))

    total = 0.0
    for one, other in zip(*matched(s, t), strict=True):
        a, b = ([normalised(channel.ravel()) for channel in x] for x in (one, other))
        total += kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)
    return total / len(s)


def ab(s: Array, t: Array) -> float:
    total = 0.0
    for x, y in zip(s.ravel(), t.ravel(), strict=True):
        if x > -1 and y <= 0:
            total += (x + 1) ** 2
        if x <= 1 and y > 0:
            total += (x - 1) ** 2
    return total / len(s)


def ft(s: Array, t: Array) -> float:
    apart = []
    for one, other in zip(*matched(s, t), strict=True):
        a, b = (normalised((x**2).mean(0).ravel()) for x in (one, other))
        apart.append(abs(a - b).mean())
    return float(np.mean(apart))


def fsp(s: Sequence[Array], t: Sequence[Array]) -> float:
    def flow(maps: Sequence[Array]) -> Array:
        one, other = matched(*maps)
        found = [[[(a * b).mean() for b in y] for a in x] for x, y in zip(one, other, strict=True)]
        return np.array(found)

    return float(((flow(s) - flow(t)) ** 2).mean())


def crd(scores: Array, z: float, samples: int) -> float:
    m = scores.shape[1] - 1
    noise = m / samples
    total = 0.0
    for row in scores / z:
        total += math.log(row[0] / (row[0] + noise + 1e-7))
        total += sum(math.log(noise / (p + noise + 1e-7)) for p in row[1:])
    return -total / len(scores)


def srrl(v: Array, t: Array, weight: Array, bias: Array, z: Array) -> float:
    return float(((v - t) ** 2).mean() + ((v @ weight.T + bias - z) ** 2).mean())


def margin(s: Array, t: Array, margins: Array) -> float:
    total = 0.0
    for place, target in np.ndenumerate(t):
        guess, m = float(s[place]), float(margins[place[1]])
        if target > 0:
            total += (guess - target) ** 2
        elif target > m:
            total += (guess - target) ** 2 if guess > target else 0
        else:
            total += (guess - m) ** 2 if guess > m else 0
    return total / len(s)


def semckd(queries: Array, keys: Array, soft: float, apart: Array) -> float:
    total = 0.0
    for b in range(len(apart)):
        for i in range(apart.shape[1]):
            powers = np.exp(keys[b] @ queries[b, i] / soft)
            total += float((powers / powers.sum() * apart[b, i]).sum())
    return total / (len(apart) * len(apart[0]))


def kl(s: Array, t: Array, temperature: float) -> float:
    """T^2 KL(t || s), the mean over the batch."""

    def softened(x: Array) -> Array:
        powers = np.exp(x / temperature)
        shares: Array = powers / powers.sum(1, keepdims=True)
        return shares

    p, q = softened(s), softened(t)
    return float(temperature**2 * (q * (np.log(q) - np.log(p))).sum(1).mean())


def shares(x: Array) -> Array:
    powers = np.exp(x - x.max(1, keepdims=True))
    found: Array = powers / powers.sum(1, keepdims=True)
    return found


def adversarial(s: Array, t: Array, where_agreed: bool) -> float:
    total = 0.0
    for own, other, p, q in zip(s, t, shares(s), shares(t), strict=True):
        if not where_agreed or own.argmax() == other.argmax():
            total += float((q * np.log(q / p)).sum())
    return -total / len(s)


def one_hot(t: Array) -> float:
    return -float(np.mean([math.log(row.max()) for row in shares(t)]))


def activation(f: Array) -> float:
    return -float(abs(f).mean())


def entropy(t: Array) -> float:
    p = shares(t).mean(0)
    return float(sum(x * math.log(x) for x in p.tolist()))


def statistics(maps: list[Array], means: list[Array], variances: list[Array]) -> float:
    total = 0.0
    for x, mean, variance in zip(maps, means, variances, strict=True):
        columns = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
        found = np.array([((column - column.mean()) ** 2).mean() for column in columns])
        total += math.sqrt(((found - variance) ** 2).sum()) + math.sqrt(((columns.mean(1) - mean) ** 2).sum())
    return total


def contrastive(local: Array, whole: Array, temperature: float, current: int) -> float:
    each = []
    for place, row in enumerate(local):
        powers = np.array([math.exp(float(row @ other) / temperature) for other in whole])
        each.append(-math.log(powers[place] / powers.sum()))
    return float(np.mean(each[:current])) + (float(np.mean(each[current:])) if each[current:] else 0.0)
