"""Times and what is told of them: quantiles, means, Markdown. Standard library only, so that every script here, also one
that runs where there is no PyTorch, tells its figures alike.

The median, the quartiles and how many sets of buffers a timing walks over are those of medmerge's src/bench/measure.rs.
"""

import math
import pathlib

# What a timing takes at least, in seconds.
LONG_ENOUGH = {"cpu": 5e-3, "cuda": 2e-3}
MOST_LAUNCHES = 4096
# Bytes of a GPU's second-level cache, or more; and of a CPU's last level where it does not say.
GPU_CACHE = CPU_CACHE = 64 << 20


def cpu_cache():
    """The largest cache that the first core sees."""
    units = {"K": 10, "M": 20, "G": 30}
    sizes = []
    for file in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size"):
        text = file.read_text().strip()
        number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "")
        if number.isdigit():
            sizes.append(int(number) << units.get(unit, 0))
    return max(sizes, default=CPU_CACHE)


def buffer_sets(bytes_, cache):
    """How many sets of `bytes_` each fill more than twice the cache."""
    return min(2 * cache // max(bytes_, 1) + 1, MOST_LAUNCHES)


def repeats(seconds, long_enough, sets=1):
    """How often to do what takes `seconds` and walks over `sets` of buffers, so that a timing is long enough."""
    return max(1, min(math.ceil(long_enough / max(seconds, 1e-9)), max(MOST_LAUNCHES // sets, 1)))


def quantile(ordered, share):
    """Of sorted values; between two of them, by how near each is."""
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def timing(seconds, launches_per_timing, sets):
    """What a row of a report tells of its timings, each in seconds of one launch."""
    ordered = sorted(seconds)
    return {
        "median": quantile(ordered, 0.5),
        "first_quartile": quantile(ordered, 0.25),
        "third_quartile": quantile(ordered, 0.75),
        "fastest": ordered[0],
        "slowest": ordered[-1],
        "timings": len(ordered),
        "launches_per_timing": launches_per_timing,
        "buffer_sets": sets,
    }


def spread(timing):
    """Half the distance between the quartiles, relative to the median."""
    return (timing["third_quartile"] - timing["first_quartile"]) / 2 / timing["median"]


def geometric_mean(numbers, weights=None):
    numbers = list(numbers)
    weights = [1] * len(numbers) if weights is None else list(weights)
    return math.exp(sum(w * math.log(x) for x, w in zip(numbers, weights, strict=True)) / sum(weights))


def duration(seconds):
    """Three digits."""
    value, unit = next(
        ((seconds * factor, unit) for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if seconds * factor >= 1),
        (seconds * 1e9, "ns"),
    )
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def table(head, rows):
    """Markdown; all but the first column are figures."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
