"""Student's t distribution: what a mean over few prompts can be trusted with."""

import math

from ertacache.errors import InvalidArgument


def t_probability(t: float, freedom: int) -> float:
    """The probability that Student's t with `freedom` degrees of freedom, a whole number from 1, is at most t.

    The sums are finite and exact for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4). t may be infinite.

    Raises:
        InvalidArgument: fewer degrees of freedom than 1, or t is NaN.
    """
    if freedom < 1 or math.isnan(t):
        raise InvalidArgument(f"t is {t} with {freedom} degrees of freedom; give a number, and 1 degree or more")
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    cosine = math.cos(angle)
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    inside = math.sin(angle) * total
    return (1 + ((angle + inside) * 2 / math.pi if odd else inside)) / 2


def t_quantile(probability: float, freedom: int) -> float:
    """The t that Student's t with `freedom` degrees of freedom, a whole number from 1, stays below with `probability`.

    Found by bisection of `t_probability`, to the last bit.

    Raises:
        InvalidArgument: a probability that does not lie between 0 and 1, or fewer degrees of freedom than 1.
    """
    if not 0 < probability < 1:
        raise InvalidArgument(f"probability is {probability}; choose a number between 0 and 1, such as 0.95")
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
    return high
