"""What an audit says: sentences of advice, tables, and JSON."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import rich.markup
import rich.table

from hapre_jax.data.audit import OF_PIXELS, Audit
from hapre_jax.errors import listing

# Areas under the ROC curve. At 0.8 four of five pairs of films are ranked right, as
# published classifiers do; at 0.65 two of three, at 0.5 one of two.
STRONG, WEAK = 0.8, 0.65
_HOPELESS = 0.9  # what chance may reach where next to nothing could be found
IMBALANCE = 3  # from here on, always answering the largest class looks accurate
FEW_FILMS = 50  # a fifth is tested: one film more or less is 10 points of recall
LEAK = 0.05  # a smaller share of the test images hardly moves a score

_UNSEEN = ("channels", "bits", "EXIF")
_JUDGE = "judge on films of other sources as well."
_ADVICE = (  # by what a network still sees of the properties
    (
        ("aspect ratio",),
        "--data.geometry cover is the only geometry that hides it from a network.",
    ),
    (
        ("width", "height", "area", "JPEG"),
        "resizing hides it from a network, but not the sharpness and the traces of "
        f"compression that come with it; {_JUDGE}",
    ),
    (
        ("file size", "bytes a pixel"),
        "the classes differ in detail or compression, be it by their devices or by the "
        f"disease itself; {_JUDGE}",
    ),
    (
        _UNSEEN,
        "hidden from a network here, as films are read as one channel of 8 bits and "
        "EXIF only turns them upright; other programs may show it.",
    ),
    (
        ("view",),
        "the view is visible in the picture; --data.view PA, or AP, takes one view "
        "only, and scores are reported per view.",
    ),
)


def verdict(audit: Audit) -> list[str]:
    """What a researcher should know, in sentences, most serious first."""
    shortcuts, others = [*_say_shortcuts(audit)], [*_say_others(audit)]
    if _telling(audit) or _best(audit)[1] > _bound(audit):
        return shortcuts + others
    return others + shortcuts


def tables(audit: Audit) -> list[rich.table.Table]:
    """Class counts, shortcuts, and groups and copies."""
    return [_films_table(audit), _shortcuts_table(audit), _groups_table(audit)]


def to_dict(audit: Audit) -> dict:
    """An audit and its verdict, as JSON has them."""
    return {**dataclasses.asdict(audit), "verdict": verdict(audit)}


def _strength(auc: float) -> float:
    return max(auc, 1 - auc)


def _direction(auc: float) -> str:
    return "higher" if auc > 0.5 else "lower" if auc < 0.5 else "-"


def _bound(audit: Audit) -> float:
    """An AUC above is worth a word."""
    return max(WEAK, audit.chance)


def _telling(audit: Audit) -> dict[str, str]:
    """What is worth a word of the properties, by their names."""
    return {
        name: f"{_title(audit, name)} (AUC {_strength(auc):.2f}, {_direction(auc)} in "
        f"{audit.classes[0]})"
        for name, auc in audit.aucs.items()
        if _strength(auc) > _bound(audit)
    }


def _title(audit: Audit, name: str) -> str:
    return f"share of {audit.view} views" if name == "view" else name


def _strongest(audit: Audit) -> tuple[str, float]:
    """The property of shape and kind that tells most, the first of equals."""
    strengths = {
        name: _strength(auc)
        for name, auc in audit.aucs.items()
        if name not in OF_PIXELS
    }
    name = max(strengths, key=lambda name: round(strengths[name], 2))
    return name, strengths[name]


def _best(audit: Audit) -> tuple[str, float]:
    """The class that shape and kind of the files tell best, and its AUC."""
    single = _strongest(audit)[1]
    if not audit.together or single >= max(audit.together):
        return audit.classes[0], single
    label = int(np.argmax(np.round(audit.together, 2)))  # the first of equals
    return audit.classes[label], audit.together[label]


def _say_shortcuts(audit: Audit) -> Iterator[str]:
    telling = _telling(audit)
    yield _say_best(audit, telling.keys() - OF_PIXELS)
    for names, advice in _ADVICE:
        listed = ", ".join(telling[name] for name in names if name in telling)
        if listed:
            yield f"By {listed}: {advice}"


def _say_best(audit: Audit, telling: set[str]) -> str:
    told, score = _best(audit)
    if score <= _bound(audit):
        if audit.chance > _HOPELESS:
            return (
                "There are too few films, or patients, to say whether the shape and "
                "kind of the files tell the classes apart: by chance alone the AUC may "
                f"reach {audit.chance:.2f}."
            )
        chance = f", where chance may reach {audit.chance:.2f}"
        return (
            f"No shortcut found in the shape and kind of the files: AUC {score:.2f}"
            f"{chance if audit.chance > WEAK else ''}."
        )
    name, single = _strongest(audit)
    # Where the classifier tells more than any property, it saw more than these.
    if {name, *telling} <= {*_UNSEEN} and single > score - 0.01:
        effect = "but by nothing that a network sees."
    elif score < STRONG:
        effect = "so a network can score a little without looking at the lungs."
    else:
        effect = "so a network can score without looking at the lungs."
    return (
        f"The shape and kind of the files alone separate {told} from the rest with AUC "
        f"{score:.2f}, {effect} Of single properties, {name} tells {audit.classes[0]} "
        f"best, AUC {single:.2f}."
    )


def _say_others(audit: Audit) -> Iterator[str]:
    copies, groups = audit.copies, audit.groups
    if copies.of_several_classes:
        yield (
            "Byte-identical files lie in several classes, of which at most one is "
            f"right: correct or remove {_files(copies.of_several_classes)}."
        )
    if copies.of_several_splits:
        yield (
            "Byte-identical files lie in several official splits, whose scores are "
            f"optimistic: {_files(copies.of_several_splits)}."
        )
    if groups.official_leak:
        yield (
            f"{groups.official_leak:.1%} of the official test images belong to a group "
            "of the official training split: scores on them are optimistic."
        )
    if groups.image_level_leak is not None and groups.image_level_leak >= LEAK:
        yield (
            "Dividing single images at random would put "
            f"{groups.image_level_leak:.1%} of the test images in a group that is "
            "trained on: split by group, the default."
        )
    if copies.of_several_groups:
        yield (
            "Byte-identical files belong to several groups, and are kept in one split "
            f"here, but not by every program: {_files(copies.of_several_groups)}."
        )
    if not groups.of_several_films:
        yield (
            "Each film is a group of its own: those of one patient may be divided "
            "between training and test. For your own films, groups.csv names patients."
        )
    yield from _say_counts(audit)


def _say_counts(audit: Audit) -> Iterator[str]:
    sizes = sorted(zip(audit.counts, audit.classes, strict=True))
    few = [f"{name} ({count})" for count, name in sizes if count < FEW_FILMS]
    if few:
        yield (
            f"Fewer than {FEW_FILMS} films of {', '.join(few)}: one test film more or "
            "less moves the recall by 10 points or more. Repeat with several seeds."
        )
    (fewest, smallest), (most, largest) = sizes[0], sizes[-1]
    if most > IMBALANCE * fewest:
        yield (
            f"There are {most / fewest:.1f} times as many films of {largest} as of "
            f"{smallest}: judge by macro-F1, not by accuracy."
        )
    if audit.together is None:
        yield (
            "Too few groups in a class for a classifier of the file properties: they "
            "were judged one by one only."
        )
    if audit.unreadable:
        reasons = listing(list(audit.unreadable.values()))
        yield f"{len(audit.unreadable)} file(s) were left out: {reasons}."


def _files(sets: Sequence[Sequence[str]]) -> str:
    return listing([name for names in sets for name in names])


def _films_table(audit: Audit) -> rich.table.Table:
    table = _table(audit.name, "class", "films", "share", *audit.official_counts)
    for label, name in enumerate(audit.classes):
        count = audit.counts[label]
        official = [str(counts[label]) for counts in audit.official_counts.values()]
        share = _percent(count / sum(audit.counts))
        table.add_row(_plain(name), str(count), share, *official)
    return table


def _shortcuts_table(audit: Audit) -> rich.table.Table:
    table = _table("shortcuts", "property", "AUC", f"in {audit.classes[0]}")
    for name, auc in sorted(audit.aucs.items(), key=lambda item: -_strength(item[1])):
        title = _plain(_title(audit, name))
        table.add_row(title, f"{_strength(auc):.3f}", _direction(auc))
    table.add_section()
    if audit.together:
        for name, auc in zip(audit.classes, audit.together, strict=True):
            table.add_row(_plain(f"shape and kind together: {name}"), f"{auc:.3f}")
        if len(audit.classes) > 2:
            table.add_row("  mean", f"{np.mean(audit.together):.3f}")
    table.add_row("possible by chance", f"{audit.chance:.3f}")
    return table


def _groups_table(audit: Audit) -> rich.table.Table:
    groups, copies = audit.groups, audit.copies
    table = _table("groups and copies", "", "")
    table.show_header = False
    for title, value in (
        ("groups", str(groups.number)),
        ("groups of several films", _percent(groups.of_several_films)),
        ("groups of several classes", _percent(groups.of_several_classes)),
        ("leak of an image-level split", _percent(groups.image_level_leak)),
        ("leak of the official split", _percent(groups.official_leak)),
        ("sets of identical files", str(len(copies.sets))),
        ("files in them", str(sum(map(len, copies.sets)))),
        ("sets of several classes", str(len(copies.of_several_classes))),
        ("sets of several groups", str(len(copies.of_several_groups))),
        ("sets of several official splits", str(len(copies.of_several_splits))),
        ("unreadable files", str(len(audit.unreadable))),
    ):
        table.add_row(title, value)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _plain(text: str) -> str:
    # A class may be called [a], and a name need not be UTF-8.
    return rich.markup.escape(text.encode(errors="backslashreplace").decode())


def _table(title: str, *columns: str) -> rich.table.Table:
    table = rich.table.Table(title=_plain(title))
    for index, column in enumerate(columns):
        table.add_column(_plain(column), justify="right" if index else "left")
    return table
