"""Masks as differences from a reference, coded by how large |w0| is.

    m_i = r_i xor f_i,     r = the mask of the largest |w0| of its matrix, ties by position; or another mask

The flips f are rare, and rarest far from the cut. `adaprune.deploy.bins` puts each entry into a bin by the distance of
|w0| from the cut, and bins with about the same share of flips, on either side (r = 0, 1), into one class. The flips of
a class, from all matrices, are one vector in one of the codings of `adaprune.deploy.coding`. Rows that are kept or
removed as a whole (words that do not occur in training) are stored separately and have no flips.

A reader computes only with whole numbers, on the bits of |w0|, so that every machine gets the same result. It does not
sort, and passes once over the weights. docs/mask_format.md describes every byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaprune.deploy.bins import Frame, counted, cut_of, fitted, keys, largest, magnitudes
from adaprune.deploy.coding import decode, encode

MOST_CLASSES = 255
_BLOCK = 2**20  # entries handled together, so that their data stay in the cache
_WORTH = 4  # a whole row is stored separately if it would have this many flips


@dataclass(frozen=True)
class Flips:
    """What a file says about all its masks, before the weights are known.

    Attributes:
        frame: the bins and classes.
        whole: one boolean per row of all matrices: is it kept or removed as a whole?
        kept: one boolean per whole row: is it kept?
        classes: the flips of each class.
    """

    frame: Frame
    whole: np.ndarray
    kept: np.ndarray
    classes: list[np.ndarray]


@dataclass(frozen=True)
class _Matrix:
    """One matrix to be written: its whole rows, and the keys and flips of the entries in the other rows."""

    whole: np.ndarray
    kept: np.ndarray
    cut: tuple[int, int]
    keys: np.ndarray
    flips: np.ndarray


def encode_flips(
    masks: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray] | None = None
) -> tuple[dict, bytes]:
    """The card's entry about the flips, and their bytes.

    Args:
        masks: name -> boolean matrix.
        weights: name -> float32 matrix of the same shape.
        others: the reference, as masks; None = the magnitude mask that keeps as many entries in each matrix.
    """
    names = sorted(masks)
    found = [_matrix(masks[name], weights[name], others and others[name]) for name in names]
    entries = np.stack([counted(matrix.keys, matrix.cut[0]) for matrix in found])
    flips = np.stack([counted(matrix.keys[matrix.flips], matrix.cut[0]) for matrix in found])
    edges, classes = fitted(entries, flips)
    frame = Frame(edges, *np.array([matrix.cut for matrix in found], np.uint32).T, classes)
    vectors = [np.concatenate([matrix.whole for matrix in found]), np.concatenate([matrix.kept for matrix in found])]
    vectors += _by_class(found, frame)
    parts, data = [], [frame.pack()]
    for vector in vectors:
        coding, part = encode(vector)
        parts.append([coding, vector.size, int(np.count_nonzero(vector)), len(part)])
        data.append(part)
    said = {"bins": classes.shape[2], "frame": len(data[0]), "rows": parts[:2], "classes": parts[2:]}
    return said, b"".join(data)


def read_flips(said: Mapping, data: bytes, shapes: Sequence[tuple[int, int]], limit: int) -> Flips:
    """The flips in these bytes, complete and in the numbers that matrices of these ``shapes`` need.

    Takes memory for at most ``limit`` entries, a byte each. ``said`` is the card's entry, which is not trusted.

    Raises:
        ValueError, TypeError, LookupError: the flips are not what the card says.
    """
    parts, start = [*said["rows"], *said["classes"]], said["frame"]
    if not 1 <= len(said["classes"]) <= MOST_CLASSES or len(said["rows"]) != 2:
        raise ValueError(f"flips have 2 vectors for rows and at most {MOST_CLASSES} classes")
    numbers = [start, *(number for part in parts for number in part[1:])]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("sizes of the flips are no counts")
    frame = Frame.unpack(data[:start], len(shapes), said["bins"])
    if frame.classes.max(initial=0) >= len(said["classes"]):
        raise ValueError("a bin has a class that is not there")
    rows, entries = sum(rows for rows, _ in shapes), sum(rows * columns for rows, columns in shapes)
    if parts[0][1] != rows or parts[1][1] != parts[0][2] or sum(part[1] for part in parts[2:]) > entries:
        raise ValueError("the flips are those of other matrices")
    if sum(part[1] for part in parts) > limit:
        raise ValueError(f"the flips claim more than {limit} entries")
    vectors = []
    for coding, size, ones, length in parts:
        if ones > size:
            raise ValueError("more flips than entries")
        vectors.append(decode(coding, data[start : start + length], (size,), ones))
        start += length
    if start != len(data):
        raise ValueError(f"{len(data)} bytes of flips, not {start}")
    return Flips(frame, vectors[0], vectors[1], vectors[2:])


def decode_flips(
    flips: Flips, weights: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The masks, name -> boolean matrix, from the ``weights``, name -> float32 matrix; ``others`` as above.

    Raises:
        ValueError: the flips do not belong to these weights.
    """
    masks, used, row, whole_row = {}, np.zeros(len(flips.classes), int), 0, 0
    for number, name in enumerate(sorted(weights)):
        mask = np.empty(weights[name].shape, bool)
        whole = flips.whole[row : row + len(mask)]
        row, values = row + len(mask), flips.kept[whole_row : whole_row + np.count_nonzero(whole)]
        whole_row += len(values)
        mask[whole] = values[:, None]
        found = magnitudes(weights[name])[~whole].reshape(-1)
        cut, ties = int(flips.frame.cuts[number]), int(flips.frame.ties[number])
        rest = largest(found, cut, ties) if others is None else others[name][~whole].reshape(-1)
        for part, order, counts in _blocks(keys(found, rest), flips.frame.table(number), len(used)):
            ends = used + counts
            taken = [vector[start:end] for vector, start, end in zip(flips.classes, used, ends, strict=True)]
            if any(end > len(vector) for vector, end in zip(flips.classes, ends, strict=True)):
                raise ValueError("fewer flips than these weights need")
            rest[part][order] ^= np.concatenate(taken)
            used = ends
        mask[~whole] = rest.reshape(-1, mask.shape[1])
        masks[name] = mask
    if any(end < len(vector) for vector, end in zip(flips.classes, used, strict=True)):
        raise ValueError("more flips than these weights need")
    return masks


def _matrix(mask: np.ndarray, weight: np.ndarray, other: np.ndarray | None) -> _Matrix:
    """Keys and flips of one matrix; the second time without the rows that are better stored separately."""
    found, whole = magnitudes(weight), np.zeros(len(mask), bool)
    matrix = _rest(mask, found, other, whole)
    uniform = mask.all(axis=1) | ~mask.any(axis=1)
    if uniform.any():
        whole = uniform & (np.count_nonzero(matrix.flips.reshape(mask.shape), axis=1) >= _WORTH)
    return _rest(mask, found, other, whole) if whole.any() else matrix


def _rest(mask: np.ndarray, found: np.ndarray, other: np.ndarray | None, whole: np.ndarray) -> _Matrix:
    kept = mask[whole].any(axis=1)
    if whole.any():
        mask, found, other = mask[~whole], found[~whole], None if other is None else other[~whole]
    mask, found = mask.reshape(-1), found.reshape(-1)
    cut = cut_of(found, int(np.count_nonzero(mask)))
    reference = largest(found, *cut) if other is None else other.reshape(-1)
    return _Matrix(whole, kept, cut, keys(found, reference), reference ^ mask)


def _by_class(found: Sequence[_Matrix], frame: Frame) -> list[np.ndarray]:
    """The flips of each class, over all matrices in turn."""
    number = int(frame.classes.max(initial=0)) + 1
    vectors: list[list[np.ndarray]] = [[] for _ in range(number)]
    for place, matrix in enumerate(found):
        for part, order, counts in _blocks(matrix.keys, frame.table(place), number):
            pieces = np.split(matrix.flips[part][order], counts.cumsum()[:-1])
            for vector, piece in zip(vectors, pieces, strict=True):
                vector.append(piece)
    return [np.concatenate(vector) if vector else np.zeros(0, bool) for vector in vectors]


def _blocks(found: np.ndarray, table: np.ndarray, number: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """For each block of keys: its position, its entries in the order of their classes, and the size of each class."""
    for start in range(0, found.size, _BLOCK):
        classes = table.take(found[start : start + _BLOCK])
        yield slice(start, start + _BLOCK), np.argsort(classes, kind="stable"), np.bincount(classes, minlength=number)
