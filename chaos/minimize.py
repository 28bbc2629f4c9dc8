"""The smallest part of a failing schedule that still fails: delta debugging.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002 (ddmin).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def minimize(
    items: Sequence[T], fails: Callable[[list[T]], bool], going_on: Callable[[], bool] = lambda: True
) -> list[T]:
    """The smallest subset found that still fails; all of `items` if no smaller one does.

    `fails` is asked of no subset twice. Once `going_on()` is false, the best so far is returned.
    """
    indices, parts, known = list(range(len(items))), 2, set[tuple[int, ...]]()
    while len(indices) > 1 and going_on():
        for kept, next_parts in _candidates(indices, min(parts, len(indices))):
            if tuple(kept) in known or not going_on():
                continue
            known.add(tuple(kept))
            if fails([items[n] for n in kept]):
                indices, parts = kept, next_parts
                break
        else:
            if parts >= len(indices):
                break
            parts *= 2
    return [items[n] for n in indices]


def _candidates(indices: list[int], parts: int) -> list[tuple[list[int], int]]:
    """Each part alone, then all without each part; and into how many parts to divide it should it fail."""
    edges = [len(indices) * n // parts for n in range(parts + 1)]
    chunks = [indices[low:high] for low, high in pairwise(edges)]
    rests = [[n for n in indices if n not in chunk] for chunk in chunks] if parts > 2 else []
    return [(chunk, 2) for chunk in chunks] + [(rest, max(2, parts - 1)) for rest in rests]
