#!/usr/bin/env python3
"""The constants of crates/cpu/src/math: made again, and compared with the source.

    python3 crates/cpu/scripts/coefficients.py        (needs mpmath; takes a minute)

## Method
1. The constants are read from the Rust sources, so that what is compared is what runs.
2. Parts of irrational numbers (log2 e, ln 2, 2 sqrt(2/pi)) are computed and must be the same.
3. A polynomial is fitted by the Remez exchange, with the least relative or absolute error, and its
   coefficients are rounded to f32. The Pade form of 2^t is fitted by the same exchange, with
   Newton's method for its equations.
4. Printed are the source's largest error over the interval, that of what was made here, the least
   that is possible without rounding, and how many units in the last place the two differ by.

Fits do not agree to the last bit. Rounding to f32 costs more than the fit's own error, so the source's
coefficients are neighbors whose roundings happen to do well together. They decide bits of results, and stay. The exit status is 1 where a part of
a number differs or the source's error is larger than the bound that stands here and in its comment.
"""

import pathlib
import re
import struct
import sys

from mpmath import atanh, cos, erfc, exp, findroot, lu_solve, log, matrix, mp, mpf, nint, nstr, pi, sqrt

mp.prec = 120
SOURCES = pathlib.Path(__file__).resolve().parent.parent / "src" / "math"
POINTS = 800


def f32(x):
    """The nearest f32."""
    return mpf(struct.unpack("<f", struct.pack("<f", float(x)))[0])


def number(text):
    """A literal of the source, or one of the expressions that stand for one there."""
    named = {
        "std::f32::consts::LN_2.next_down()": f32(log(2)) - mpf(2) ** -24,
        "355.0 / 512.0": mpf(355) / 512,
    }
    return named[text] if text in named else f32(text.replace("_", ""))


def constant(file, name):
    """A constant of the source, as a list."""
    text = (SOURCES / file).read_text()
    value = re.search(rf"const {name}: [^=]*= ([^;]*);", text).group(1)
    return [number(part.strip()) for part in value.strip("[]\n ").split(",") if part.strip()]


def ulps(a, b):
    """How many units in the last place of b two numbers differ by."""
    return int(nint((a - b) / mpf(2) ** (mp.frexp(b)[1] - 24)))


def grid(a, b):
    return [a + (b - a) * mpf(i) / POINTS for i in range(POINTS + 1)]


def largest(error, a, b):
    return max(abs(error(x)) for x in grid(a, b))


def extrema(error, a, b, count):
    """Places of that many extrema of alternating sign."""
    xs = grid(a, b)
    e = [error(x) for x in xs]
    found = []
    for i in range(POINTS + 1):
        if all(abs(e[i]) >= abs(e[k]) or e[i] * e[k] < 0 for k in (max(i - 1, 0), min(i + 1, POINTS))):
            if found and e[found[-1]] * e[i] > 0:
                found[-1] = max(found[-1], i, key=lambda k: abs(e[k]))
            else:
                found.append(i)
    while len(found) > count:
        found.pop(0 if abs(e[found[0]]) < abs(e[found[-1]]) else -1)
    return [xs[i] for i in found]


def nodes(a, b, count):
    return [(a + b) / 2 - (b - a) / 2 * cos(pi * i / (count - 1)) for i in range(count)]


def remez(f, weight, powers, a, b):
    """Coefficients of these powers with the least weight · |f - sum|, and that."""
    xs = nodes(a, b, len(powers) + 1)
    for _ in range(20):
        rows = [[x**p for p in powers] + [(-1) ** i / weight(x)] for i, x in enumerate(xs)]
        solved = lu_solve(matrix(rows), matrix([f(x) for x in xs]))
        c, level = list(solved)[:-1], abs(solved[len(powers)])

        def error(x):
            return weight(x) * (f(x) - sum(k * x**p for k, p in zip(c, powers)))

        new = extrema(error, a, b, len(xs))
        if len(new) < len(xs) or largest(error, a, b) < level * mpf("1.001"):
            break
        xs = new
    return c, level


def pade_error(p, t):
    """log of (even + t · odd) / (even - t · odd) over 2^t: the relative error."""
    square = t * t
    even, odd = p[0] * square + p[1], square + p[2]
    return 2 * atanh(t * odd / even) - t * log(2)


def pade(start):
    """The Pade form of 2^t on ±1/2 with the least relative error."""
    p, (a, b) = start, (mpf("1e-3"), mpf(1) / 2)
    xs = [b * mp.sin(pi * (2 * i + 1) / (4 * len(p) + 4)) for i in range(len(p))] + [b]
    for _ in range(12):

        def equations(*v):
            return [pade_error(v[:-1], x) - (-1) ** i * v[-1] for i, x in enumerate(xs)]

        solved = list(findroot(equations, [*p, mpf("1e-8")]))
        p, level = solved[:-1], abs(solved[-1])
        xs = extrema(lambda t: pade_error(p, t), a, b, len(xs))
    return p, level


failed = []


def report(name, source, made, errors, bound):
    source_error, made_error, best = errors
    differ = [ulps(m, s) for m, s in zip(made, source)]
    same = "the same" if not any(differ) else f"not the same: ulps {differ}"
    line = f"error {nstr(source_error, 3)}, made here {nstr(made_error, 3)}, best {nstr(best, 3)}"
    print(f"{name:24} {line}; {same}")
    print(f"{'':24} {', '.join(nstr(m, 9) for m in made)}")
    if source_error > bound:
        failed.append(name)


def part(name, source, value):
    same = source == f32(value)
    print(f"{name:24} {nstr(source, 9)}: {'the same' if same else nstr(f32(value), 9)}")
    if not same:
        failed.append(name)


def polynomial(name, file, constant_name, f, weight, interval, bound, tail=()):
    (a, b), source = interval, constant(file, constant_name) + list(tail)
    source.reverse()
    fitted, best = remez(f, weight, range(len(source)), a, b)
    made = [f32(c) for c in fitted]

    def error(c):
        return largest(lambda x: weight(x) * (f(x) - sum(k * x**i for i, k in enumerate(c))), a, b)

    report(name, source, made, (error(source), error(made), best), mpf(bound))


def two_to(t):
    return mpf(2) ** t


def beyond(a):
    """P(X > a) of the normal distribution."""
    return erfc(a / sqrt(2)) / 2


def tail_of(q):
    """exp(a²/2) · P(X > a) with q = (a - 3) / (a + 3)."""
    a = 3 * (1 + q) / (1 - q)
    return exp(a * a / 2) * beyond(a)


def near(y):
    """(P(X < x) - 1/2) / x with y = x²."""
    return (mpf(1) / 2 - beyond(sqrt(y))) / sqrt(y) if y else 1 / sqrt(2 * pi)


def exp_tail(x):
    """(exp(x) - 1 - x) / x²."""
    return (exp(x) - 1 - x) / x**2 if abs(x) > mpf("1e-9") else mpf(1) / 2 + x / 6


def main():
    half, log2_e, slope = mpf(1) / 2, 1 / log(2), 2 * sqrt(2 / pi)
    part("LOG2_E_LOW", constant("silu.rs", "LOG2_E_LOW")[0], log2_e - f32(log2_e))
    high = constant("exp.rs", "LN_2_HIGH")[0]
    part("LN_2_LOW", constant("exp.rs", "LN_2_LOW")[0], log(2) - high)
    for name, value in (("LINEAR", slope), ("CUBIC", slope * mpf("0.044715"))):
        both, single = constant("f32.rs", name), constant("half.rs", name)[0]
        part(f"{name} (half)", single, value)
        part(f"{name}, high", both[0], value)
        part(f"{name}, low", both[1], value - f32(value))

    source = [x for n in ("EVEN", "ODD") for x in constant("exp.rs", n)]
    p, best = pade([12 / log(2), 120 / log(2) ** 3, 60 / log(2) ** 2])
    made = [f32(x) for x in p]
    error = [largest(lambda t: pade_error(c, t), mpf("1e-3"), half) for c in (source, made)]
    report("EVEN, ODD", source, made, (*error, best), mpf("1.6e-8"))

    polynomial("EXP_2", "exp.rs", "EXP_2", two_to, lambda t: two_to(-t), (-half, half), "8e-9")
    limit = log(2) / 2
    polynomial("EXP_TAIL (Cephes' expf)", "exp.rs", "EXP_TAIL", exp_tail, lambda _: mpf(1),
               (-limit, limit), "7e-8")

    def of_a(a):
        return (mpf(a) - 3) / (mpf(a) + 3)

    polynomial("TAIL (half)", "half.rs", "TAIL", tail_of, lambda q: 1 / tail_of(q),
               (of_a(0), of_a("12.7")), "8e-8")
    polynomial("TAIL (f32)", "f32.rs", "TAIL", tail_of, lambda q: 1 / tail_of(q),
               (of_a(1), of_a(5)), "7.6e-9", tail=constant("f32.rs", "TAIL_CONSTANT"))
    polynomial("NEAR", "f32.rs", "NEAR", near, lambda y: 1 / near(y), (mpf(0), mpf(1)), "3.3e-8")
    if failed:
        sys.exit(f"not as the source says: {', '.join(failed)}")


if __name__ == "__main__":
    main()
