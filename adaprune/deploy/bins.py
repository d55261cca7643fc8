"""The bins of |w0| around a cut, and the frame of a file, which says where they are and how likely flips are in each.

|w0| is read as a whole number, its float32 bits without the sign. Magnitudes have the same order as these numbers, and
the upper 16 bits are a logarithm in steps of 2^-7 of a power of two. The distance of an entry from its matrix's cut,

    d_i = (|w0_i| >> 16) - (cut >> 16),     bin_i = the number of edges <= d_i,

is about 128 log2(|w0_i| / c). All matrices have the same edges; each has its own cut, and its own class per bin.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from adaprune.deploy.coding import inflate

REACH = 2047  # the farthest edge from the cut: a factor of 2^16
# The writer tries these numbers of bins, with these log-odds between neighbouring classes, and keeps the shortest.
BINS, STEPS = (1, 6, 12, 24, 48, 72), (0.5, 1.0)
MOST_BINS = 256  # they bound a reader's memory; more than 72 have never helped
_A_CLASS = 60  # bytes per additional class: its Huffman table and its entry in the card


@dataclass(frozen=True)
class Frame:
    """What a reader needs besides the flips: the ``edges`` of the bins, and the cut and classes of each matrix.

    Attributes:
        edges: increasing distances.
        cuts: per matrix, the magnitude of the last entry that its reference keeps.
        ties: how many entries of exactly that magnitude are kept (the first ones).
        classes: shape (matrices, 2, bins): the class of the entries that the reference removes, or keeps.
    """

    edges: np.ndarray
    cuts: np.ndarray
    ties: np.ndarray
    classes: np.ndarray

    def pack(self) -> bytes:
        parts = [self.edges.astype("<i2"), self.cuts.astype("<u4"), self.ties.astype("<u4"), self.classes.astype("u1")]
        return zlib.compress(b"".join(part.tobytes() for part in parts), 9)

    @classmethod
    def unpack(cls, data: bytes, matrices: int, bins: int) -> Frame:
        """The frame in these bytes; ValueError if they hold another number of bins or matrices."""
        if type(bins) is not int or not 1 <= bins <= MOST_BINS:
            raise ValueError(f"there are 1 to {MOST_BINS} bins, not {str(bins)[:20]}")
        lengths = np.cumsum([2 * (bins - 1), 4 * matrices, 4 * matrices, 2 * matrices * bins])
        whole = inflate(data, int(lengths[-1]))
        if len(whole) != lengths[-1]:
            raise ValueError(f"a frame of {len(whole)} bytes for {matrices} matrices and {bins} bins")
        kinds, starts = ("<i2", "<u4", "<u4", "u1"), [0, *lengths[:-1]]
        parts = [np.frombuffer(whole[start:end], kind) for kind, start, end in zip(kinds, starts, lengths, strict=True)]
        if (np.diff(parts[0].astype(int)) <= 0).any():
            raise ValueError("the edges of the bins do not increase")
        return cls(*parts[:3], parts[3].reshape(matrices, 2, bins))

    def table(self, matrix: int) -> np.ndarray:
        """The class of an entry of this matrix by its key (see `keys`), for all 65,536 keys."""
        distances = np.arange(2**15) - int(self.cuts[matrix] >> 16)
        return self.classes[matrix][:, np.searchsorted(self.edges, distances, side="right")].reshape(-1)


def magnitudes(weight: np.ndarray) -> np.ndarray:
    """|w0| as whole numbers in the same order: the bits of the float32 numbers, without the sign."""
    return np.ascontiguousarray(weight).view(np.uint32) & np.uint32(2**31 - 1)


def cut_of(found: np.ndarray, kept: int) -> tuple[int, int]:
    """The ``kept``-th largest magnitude, and how many entries equal to it are among the ``kept`` largest."""
    if not kept:
        return 2**31 - 1, 0
    cut = np.partition(found, found.size - kept)[found.size - kept]
    return int(cut), kept - int(np.count_nonzero(found > cut))


def largest(found: np.ndarray, cut: int, ties: int) -> np.ndarray:
    """The magnitude mask: entries above the cut, and the first ``ties`` entries equal to it (a flat vector)."""
    kept = found > np.uint32(cut)
    if ties:
        kept[np.flatnonzero(found == np.uint32(cut))[:ties]] = True
    return kept


def keys(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """A 16-bit number that decides an entry's class: the upper half of |w0|, and the reference as the top bit."""
    return (found >> np.uint32(16)).astype(np.uint16) | (reference.astype(np.uint16) << np.uint16(15))


def counted(found: np.ndarray, cut: int) -> np.ndarray:
    """How many of these keys are at each distance of at most `REACH`, shape (2, 2 REACH + 1)."""
    blocks = [np.bincount(found[start : start + 2**20], minlength=2**16) for start in range(0, found.size, 2**20)]
    places = np.clip(np.arange(2**15) - (cut >> 16), -REACH, REACH) + REACH
    sides = sum(blocks, np.zeros(2**16, int)).reshape(2, 2**15)
    return np.stack([np.bincount(places, side, 2 * REACH + 1) for side in sides])


def binned(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts at each distance, summed into bins."""
    return np.add.reduceat(counts, np.concatenate([[0], edges.astype(int) + REACH]), axis=-1)


def information(entries: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """The information in k flips among n entries, in bytes: n H(k / n) / 8."""
    share = flips / np.maximum(entries, 1)
    either = [np.where(part > 0, part * np.log2(np.maximum(part, 1e-300)), 0) for part in (share, 1 - share)]
    return -entries * sum(either) / 8


def fitted(entries: np.ndarray, flips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges and classes with which these counts, shape (matrices, 2, distances), take the fewest bytes."""
    tried = []
    for bins in BINS:
        edges = _edges(entries.sum((0, 1)), flips.sum((0, 1)), bins)
        inside, flipped = binned(entries, edges), binned(flips, edges)
        for step in STEPS:
            classes = _classes(inside, flipped, step)
            number = int(classes.max()) + 1
            n, k = (np.bincount(classes.reshape(-1), counts.reshape(-1), number) for counts in (inside, flipped))
            size = information(n, k).sum() + len(zlib.compress(classes.tobytes(), 9)) + _A_CLASS * number
            tried.append((size + 2 * bins, len(tried), edges, classes))
    return min(tried)[2:]


def _edges(entries: np.ndarray, flips: np.ndarray, bins: int) -> np.ndarray:
    """Edges between which the flips carry about the same information; fewer if the steps are too coarse."""
    smooth = np.ones(9)
    near, flipped = (np.convolve(counts, smooth, "same") for counts in (entries, flips))
    share = (flipped + 0.1) / (near + 0.2)
    worth = information(entries, entries * share).cumsum()
    if not flips.any():
        return np.zeros(0, np.int16)
    places = np.searchsorted(worth, worth[-1] * np.arange(1, bins) / bins) + 1
    return (np.unique(places[places < len(entries)]) - REACH).astype(np.int16)


def _classes(entries: np.ndarray, flips: np.ndarray, step: float) -> np.ndarray:
    """Bins with about the same log-odds of a flip share a class, numbered from 0; empty bins get any class."""
    levels = np.rint(np.log((flips + 0.5) / (entries - flips + 0.5)) / step)
    if entries.any():
        levels[entries == 0] = levels[entries > 0].min()
    return np.unique(levels, return_inverse=True)[1].reshape(levels.shape).astype(np.uint8)
