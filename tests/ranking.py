"""Learned budgets written out literally: the heads of a ranking, one channel longer each."""

import functools
import math


def heads(widths, saliencies, multiple_of=1, min_channels=1):
    """Widths of every head of the ranking of all channels, the empty one first.

    Args:
      widths: group -> C.
      saliencies: group -> C numbers.
      multiple_of: of every width that is not C.
      min_channels: of every group, or C where that is smaller.
    """
    names = list(widths)
    ranked = sorted((-v, i, c) for i, g in enumerate(names) for c, v in enumerate(saliencies[g]))
    counts, found = dict.fromkeys(names, 0), []
    for channel in (None, *ranked):
        if channel is not None:
            counts[names[channel[1]]] += 1
        found.append(
            {g: nearest(k, widths[g], multiple_of, min_channels) for g, k in counts.items()}
        )
    return found


@functools.cache
def nearest(count, width, multiple_of, min_channels):
    """The rung nearest to a count, of two at one distance the larger; all channels stay all."""
    if count == width:
        return width
    return min(rungs(width, multiple_of, min_channels), key=lambda k: (abs(k - count), -k))


def rungs(width, multiple_of, min_channels):
    """The widths that a group of ``width`` channels may be narrowed to."""
    floor = min(min_channels, width)
    return [k for k in range(1, width + 1) if k % multiple_of == 0 and k >= floor]


def following(widths, saliencies, found, multiple_of, floor):
    """The head after the longest one that is ``found``; no group gets less than its floor.

    For rankings of thousands of channels: unlike `heads` it keeps one head at a time.
    """
    least = {g: math.ceil(floor * width) for g, width in widths.items()}
    counts = dict.fromkeys(widths, 0)
    head = {g: nearest(0, widths[g], multiple_of, least[g]) for g in widths}
    met = head == found
    ranked = sorted((-v, i, name) for i, name in enumerate(widths) for v in saliencies[name])
    for _, _, group in ranked:
        counts[group] += 1
        head[group] = nearest(counts[group], widths[group], multiple_of, least[group])
        if met and head != found:
            return head
        met = head == found
    raise AssertionError("found is no head of the ranking, or the last one")
