"""Label spaces: how the classes of two sources meet.

Some sources tell bacterial from viral pneumonia, others only pneumonia from none. A
model of one is scored on the other in the finest space that both have: probabilities
and labels are summed up to it.
"""

from collections.abc import Sequence

import numpy as np

from hapre_jax.errors import UserError

# A class to the coarser one that holds it.
_PARENTS = {"bacterial": "pneumonia", "viral": "pneumonia"}
# What sources call the same class, in lower case.
_SYNONYMS = {
    "bacteria": "bacterial",
    "bacterial pneumonia": "bacterial",
    "virus": "viral",
    "viral pneumonia": "viral",
    "no finding": "normal",
    "no findings": "normal",
    "no_finding": "normal",
    "no_findings": "normal",
    "lung opacity": "pneumonia",
}


def common(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """The finest classes that the classes of both sources sum up to.

    In the order of `first`. Equal classes stay as they are; those of other names than
    ours meet only themselves.

    Raises:
      UserError: the sources have no two classes in common.
    """
    if tuple(first) == tuple(second):
        return tuple(first)
    ours, theirs = _canonical(first), _canonical(second)
    if set(ours) == set(theirs) and len(set(ours)) == len(ours):
        return ours
    ours, theirs = _coarse(ours), _coarse(theirs)
    if set(ours) == set(theirs) and len(set(ours)) > 1:
        return tuple(dict.fromkeys(ours))
    raise UserError(
        f"the classes {', '.join(first)} and {', '.join(second)} have no common label "
        "space: name them alike, or normal, pneumonia, bacterial, viral"
    )


def projection(classes: Sequence[str], space: Sequence[str]) -> np.ndarray:
    """`f32[K, L]`: 1 where class k belongs to class l of a coarser or equal space.

    Probabilities `f32[N, K]` times it are those of the space; `argmax` of row k is the
    new label of class k.

    Args:
      classes: K names.
      space: L names, of `common`.

    Raises:
      UserError: a class belongs nowhere.
    """
    if tuple(classes) == tuple(space):
        return np.eye(len(classes), dtype=np.float32)
    matrix = np.zeros((len(classes), len(space)), np.float32)
    for row, name in enumerate(_canonical(classes)):
        target = name if name in space else _PARENTS.get(name, name)
        if target not in space:
            raise UserError(f"class {classes[row]!r} is in none of {', '.join(space)}")
        matrix[row, list(space).index(target)] = 1
    return matrix


def are_same(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two sources have the same classes in one order, under names of theirs."""
    return _canonical(first) == _canonical(second)


def _canonical(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(_SYNONYMS.get(name.lower(), name.lower()) for name in classes)


def _coarse(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(_PARENTS.get(name, name) for name in classes)
