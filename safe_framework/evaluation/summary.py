"""What an evaluation says in three numbers, the details behind them, and both as a Rich table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safe_framework.data.tasks import CAPTIONS
from safe_framework.errors import DataError
from safe_framework.evaluation.base_drift import BaseChanged
from safe_framework.evaluation.metrics import Estimate, interval, interval_points
from safe_framework.evaluation.relevance_risk import Counted
from safe_framework.evaluation.results import (
    WHOLE_ANSWER,
    Agreement,
    BothSensesScores,
    Evaluation,
    GroupGain,
    SeeingScore,
    SeeingScores,
)
from safe_framework.utils.formatting import count, duration, percent, points, size


@attrs.frozen
class Headline:
    """One of the three numbers that a reader takes away.

    Attributes:
        name: what the number is about.
        number: large.
        meaning: what it counts, in one line.
        context: what to compare it with.
    """

    name: str
    number: str
    meaning: str
    context: str


@attrs.frozen
class Row:
    """One line of the details.

    Attributes:
        name: what was measured.
        value: the number.
        interval: its 95 % interval, or empty.
        note: how many and of what, or what it means.
        met: whether it is what it must be; None where nothing was asked of it.
    """

    name: str
    value: str
    interval: str = ""
    note: str = ""
    met: bool | None = None


@attrs.frozen
class Section:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


TARGETS = ("accuracy", "over_base", "over_shuffled", "agreement", "seeing")
"""What a target can be set for; each is met where the measured value is not below it.

``seeing`` is the retention score of questions about pictures, beside irrelevant samples.
"""


def checked_targets(targets: Mapping[str, float] | None) -> Mapping[str, float]:
    """The targets, if they are known ones.

    Raises:
        DataError: a name is none of ``TARGETS``.
    """
    targets = targets or {}
    if unknown := [name for name in targets if name not in TARGETS]:
        raise DataError(
            f"`{unknown[0]}` is no target", hint=f"targets can be set for: {', '.join(TARGETS)}"
        )
    return targets


def headlines(evaluation: Evaluation) -> tuple[Headline, ...]:
    """Gain, off, keeps; and sees, where questions about pictures were asked."""
    three = _gain_headline(evaluation), _off_headline(evaluation), _kept_headline(evaluation)
    return (*three, _seeing_headline(evaluation)) if evaluation.seeing else three


def _gain_headline(evaluation: Evaluation) -> Headline:
    found = list(evaluation.datasets.values())
    if found and all(one.task == CAPTIONS for one in found):  # which are not right or wrong
        return _caption_headline(evaluation.modality, found)
    gain, name = evaluation.gain, evaluation.modality
    return Headline(
        "Gain",
        points(gain.over_base.value),
        f"{percent(gain.accuracy.value)} of {gain.accuracy.n} unseen {name} examples answered "
        f"right, {percent(gain.base.value)} without {name}",
        f"linear probe {percent(gain.probe.value)} · shuffled {percent(gain.shuffled.value)} · "
        f"chance {percent(gain.chance.value)}{_other_words(evaluation)}",
    )


def _other_words(evaluation: Evaluation) -> str:
    """The accuracy of the first kind of question in forms that were kept from training."""
    kinds = list(evaluation.wordings.kinds.values()) if evaluation.wordings else []
    return f" · in other words {percent(kinds[0].held_out.value)}" if kinds else ""


def _off_headline(evaluation: Evaluation) -> Headline:
    if evaluation.base_changed is not None:
        return _changed_headline(evaluation.base_changed)
    absent, shut = evaluation.retention.absent, evaluation.gate_zero
    same = absent.identical and shut.identical
    return Headline(
        "Off",
        "bit for bit" if same else "NOT the base",
        f"{'the base' if same else 'a law is broken'} when {evaluation.modality} is absent or its "
        "gate is 0",
        f"{absent.texts} texts and {shut.examples} examples compared",
    )


def _changed_headline(changed: BaseChanged) -> Headline:
    return Headline(
        "Off",
        "BASE CHANGED",
        "L1 and L2 do not hold: training changed the base itself",
        f"absent, {percent(changed.drift.agreement.value)} of next tokens unchanged",
    )


def _caption_headline(modality: str, datasets: Sequence[GroupGain]) -> Headline:
    rows = sum(found.score.n for found in datasets)

    def mean(of: Callable[[GroupGain], Estimate]) -> str:
        """One measure's mean over datasets, weighted by their rows."""
        return percent(sum(of(found).value * found.score.n for found in datasets) / rows)

    return Headline(
        "Hears",
        mean(lambda found: found.score),
        f"of words shared with the right caption (F1), over {rows} unseen {modality} examples",
        f"without {modality} {mean(lambda found: found.base)} · "
        f"shuffled {mean(lambda found: found.shuffled)}",
    )


def _seeing_headline(evaluation: Evaluation) -> Headline:
    assert evaluation.seeing is not None
    scores, name = evaluation.seeing.scores, evaluation.modality
    kept = scores.overall.retention
    context = f"{percent(scores.overall.unchanged.value)} of its answers unchanged to the letter"
    if kept is None:
        return Headline(
            "Sees",
            percent(scores.overall.unchanged.value),
            f"of answers to {scores.base.n} questions about pictures unchanged beside irrelevant "
            f"{name}",
            "the base answers none of them right",
        )
    return Headline(
        "Sees",
        percent(kept.value),
        f"of the base's VQA accuracy on {scores.base.n} questions about pictures, at gate 1 beside "
        f"irrelevant {name}",
        f"base {percent(scores.base.value)} · {context}",
    )


def _kept_headline(evaluation: Evaluation) -> Headline:
    kept = evaluation.retention.overall
    return Headline(
        "Keeps",
        percent(kept.agreement.value),
        f"of next tokens unchanged at gate 1 beside irrelevant {evaluation.modality}",
        f"{count(evaluation.trainable_parameters)} trainable parameters, "
        f"{percent(evaluation.trainable_parameters / evaluation.base_parameters)} of the base's",
    )


def sections(
    evaluation: Evaluation, targets: Mapping[str, float] | None = None
) -> tuple[Section, ...]:
    """All results with their intervals.

    Args:
        evaluation: what was measured.
        targets: least values of any of ``TARGETS``, to be marked met or not.

    Raises:
        DataError: a target is unknown.
    """
    asked = checked_targets(targets)
    by_dataset = (Section("Gain by dataset", tuple(_datasets(evaluation))),)
    return (
        *_not_held_out(evaluation),
        Section("Gain", tuple(_gain(evaluation, asked))),
        *(by_dataset if evaluation.datasets else ()),
        *_by_kind(evaluation),
        *_by_source(evaluation),
        *_wordings(evaluation),
        *_both_senses(evaluation),
        *_kept_when_off(evaluation),
        *_seeing(evaluation, asked),
        *_relevance(evaluation),
        Section("Tokens kept, gate at 1", tuple(_agreements(evaluation, asked))),
        Section("KL in nats, gate at 1", tuple(_divergences(evaluation))),
        *_others(evaluation),
        Section("Costs", tuple(_all_costs(evaluation))),
    )


def _not_held_out(evaluation: Evaluation) -> Iterator[Section]:
    """Test rows that were trained on, if there are any."""
    if found := evaluation.trained_on:
        first = f"such as {found[0].place}, which holds what {found[0].trained} holds"
        value = f"{len(found)} of {len(evaluation.answers)}"
        row = Row("test rows trained on", value, "", first, False)
        yield Section("NOT HELD OUT: what follows is too good", (row,))


def _gain(evaluation: Evaluation, asked: Mapping[str, float]) -> Iterator[Row]:
    gain, name = evaluation.gain, evaluation.modality
    examples = f"{gain.accuracy.n} examples"
    yield _share(f"accuracy with {name}", gain.accuracy, examples, asked.get("accuracy"))
    if gain.token_f1 is not None:
        yield _share("token F1", gain.token_f1, "words shared")
    if (alike := gain.semantic) is not None:
        limits = f"{alike.low:.2f} to {alike.high:.2f}"
        yield Row("semantic similarity", f"{alike.value:.2f}", limits, "cosine, 1 is the same")
    yield _share("linear probe", gain.probe, f"{evaluation.train_examples} to fit")
    if (limit := evaluation.limit) is not None:
        yield Row("what limits it", limit.limiting, "", limit.advice)
    yield _share(f"base without {name}", gain.base, "prompt alone")
    yield _share(f"shuffled {name}", gain.shuffled, "wrong sample")
    yield _share("chance", gain.chance, "commonest")
    yield _difference("gain over the base", gain.over_base, asked.get("over_base"))
    yield _difference("gain over shuffled", gain.over_shuffled, asked.get("over_shuffled"))


def _others(evaluation: Evaluation) -> Iterator[Section]:
    """What older results do not hold."""
    rows = []
    if found := evaluation.calibration:
        rows.append(_share("calibration error", found.error, "of an answer's probability"))
        rows.append(_share("confidence", found.confidence, "mean probability of an answer"))
    if alike := evaluation.alignment:
        rows.append(_share("nearest word is right", alike.nearest, "to a sample's mean token"))
        limits = f"{alike.cosine.low:.2f} to {alike.cosine.high:.2f}"
        rows.append(Row("cosine to the answer", f"{alike.cosine.value:.2f}", limits, "alignment"))
    rows += _against_pictures(evaluation)
    if rows:
        yield Section("Confidence and alignment", tuple(rows))


def _against_pictures(evaluation: Evaluation) -> Iterator[Row]:
    if (alike := evaluation.picture_alignment) is not None:
        chance = f"by chance {percent(1 / alike.pictures)}"
        yield _share("nearest picture is its own", alike.nearest, chance)
        for name, found in (
            ("cosine to the picture", alike.cosine),
            ("cosine to other pictures", alike.shuffled),
            ("cosine, own less others", alike.margin),
        ):
            limits = f"{found.low:.2f} to {found.high:.2f}"
            yield Row(name, f"{found.value:.2f}", limits, alike.source)
    elif why := evaluation.unmeasured.get("picture_alignment"):
        yield Row("cosine to the picture", "none", "", why)


def _kept_when_off(evaluation: Evaluation) -> Iterator[Section]:
    """That off is the base; or, where fine-tuning changed it, how far it drifted."""
    if evaluation.base_changed is None:
        yield Section("Kept when off", tuple(_off(evaluation)))
    else:
        rows = _drifted(evaluation.base_changed)
        yield Section("Base CHANGED: L1 and L2 do not hold", tuple(rows))


def _drifted(changed: BaseChanged) -> Iterator[Row]:
    drift, original = changed.drift, changed.off_is_the_original_base
    kl = f"{drift.kl.low:.2g} to {drift.kl.high:.2g}"
    off = "identical" if drift.off_identical else "differ"
    yield Row("parameters changed", f"{changed.parameters:,}", "", changed.method)
    yield _share("agreement, absent", drift.agreement, f"{drift.texts} {drift.source}")
    yield Row("KL in nats, absent", f"{drift.kl.value:.2g}", kl, f"{drift.positions:,} positions")
    yield Row("largest logit difference", f"{drift.largest:.2g}", "", "absent")
    note = "the original" if original else "changed in place"
    yield Row("logits, off()", off, "", note, drift.off_identical if original else None)


def _datasets(evaluation: Evaluation) -> Iterator[Row]:
    for name, found in evaluation.datasets.items():
        gained = f"{points(found.over_base.value)} over base"
        shuffled = f"{points(found.over_shuffled.value)} over shuffled"
        yield _share(name, found.score, f"{found.measure}, n {found.score.n}; {gained}, {shuffled}")


def _by_kind(evaluation: Evaluation) -> Iterator[Section]:
    if evaluation.kinds:
        rows = [
            _share(
                kind,
                found.score,
                f"base {percent(found.base.value)}, shuffled {percent(found.shuffled.value)}, "
                f"n {found.score.n}",
            )
            for kind, found in evaluation.kinds.items()
        ]
        yield Section(f"Gain by {evaluation.by}", tuple(rows))


def _by_source(evaluation: Evaluation) -> Iterator[Section]:
    rows = []
    for source, limit in evaluation.sources.items():
        name = f"{source}, never trained on" if limit.trained is False else source
        rows.append(_share(name, limit.accuracy, f"n {limit.accuracy.n}"))
        rows.append(_share("  its linear probe", limit.probe, limit.advice))
    if rows:
        yield Section("Gain by source", tuple(rows))


def _wordings(evaluation: Evaluation) -> Iterator[Section]:
    """The same rows in forms that training never saw, and in other chats."""
    found, rows = evaluation.wordings, list[Row]()
    for kind, one in found.kinds.items() if found else ():
        known, held = percent(one.trained_balanced), percent(one.balanced)
        number = f"{len(one.forms)} forms, n {one.held_out.n}"
        rows.append(_share(f"{kind}: trained forms", one.trained, f"balanced {known}"))
        rows.append(_share(f"{kind}: held-out forms", one.held_out, f"balanced {held}, {number}"))
        worst = f"{one.worst.form} (n {one.worst.n})"
        rows.append(Row(f"{kind}: worst form", percent(one.worst.score), "", worst))
    for way, score in found.chats.items() if found else ():
        note = f"{percent(found.chats_trained[way].value)} as trained, n {score.n}" if found else ""
        rows.append(_share(way, score, note))
    if why := evaluation.unmeasured.get("wordings"):
        rows.append(Row("held-out forms", "none", "", why))
    if rows:
        yield Section("In other words", tuple(rows))


def _relevance(evaluation: Evaluation) -> Iterator[Section]:
    """Where the gate that decides opens, what it keeps, and what irrelevant samples change."""
    found = evaluation.relevance
    if found is None:
        return
    mistakes = found.false_opens.items()
    rows = [_counted(f"opens on {kind}", one, "by mistake") for kind, one in mistakes]
    rows += [_counted(f"opens in {kind}", one, "as it should") for kind, one in found.opens.items()]
    for kind, kept in found.gain.items():
        share = "none" if kept.share is None else percent(kept.share)
        note = f"right {percent(kept.auto)}, at gate 1 {percent(kept.opened)}, n {kept.n}"
        rows.append(Row(f"gain kept, {kind}", share, "", note))
    for kind, one in found.influence.items():
        opened = f"at gate 1 {percent(one.opened.share)}, {WHOLE_ANSWER} tokens"
        rows.append(_counted(f"answers changed by {kind}", one.auto, opened))
    if not found.sentence:
        rows.append(Row("calibrated", "no", "", "`safe calibrate` bounds the mistakes"))
    yield Section("Gate that decides (auto)", tuple(rows))


def _counted(name: str, one: Counted, note: str) -> Row:
    limits = f"{percent(one.low)} to {percent(one.high)}"
    return Row(name, percent(one.share), limits, f"{note}, {one.count} of {one.calls}")


def _both_senses(evaluation: Evaluation) -> Iterator[Section]:
    """What questions with a picture and a sample gain by having both."""
    if evaluation.both_senses is None:
        return
    scores, name = evaluation.both_senses.scores, evaluation.modality
    rows = [_share(f"picture and {name}", scores.accuracy, f"{scores.accuracy.n} examples")]
    for given, found in scores.baselines.items():
        note = f"{points(found.below.value)} with both"
        rows.append(_share(given.replace("sample", name), found.accuracy, note))
    yield Section("Questions with both senses", tuple(rows))
    if kinds := evaluation.both_senses.kinds:
        yield Section(
            f"Both senses by {evaluation.by}",
            tuple(_share(kind, one.accuracy, _baselines(one, name)) for kind, one in kinds.items()),
        )


def _baselines(scores: BothSensesScores, modality: str) -> str:
    parts = [
        f"{given.replace('sample', modality)} {percent(found.accuracy.value)}"
        for given, found in scores.baselines.items()
    ]
    return f"{'; '.join(parts)}; n {scores.accuracy.n}"


def _seeing(evaluation: Evaluation, asked: Mapping[str, float]) -> Iterator[Section]:
    """What became of the base's answers about pictures."""
    seen, name = evaluation.seeing, evaluation.modality
    if seen is None:
        return
    law, scores = evaluation.base_changed is None, seen.scores
    absent = [
        attrs.evolve(row, met=row.met if law else None)
        for row in (
            _identical("logits, absent", seen.logits_identical, f"{scores.base.n} questions"),
            _identical("answers, absent", seen.answers_identical, f"{scores.base.n} questions"),
        )
    ]
    yield Section(
        "Seeing: VQA accuracy",
        (
            _share("base", scores.base, f"{scores.base.n} questions about pictures"),
            *absent,
            *(
                _share(way, found.accuracy, f"{points(found.over_base.value)} to the base")
                for way, found in _ways(scores, name).items()
            ),
        ),
    )
    yield Section("Seeing: retention score", tuple(_retention_scores(scores, name, asked)))
    yield Section(
        "Seeing: answers unchanged",
        tuple(
            _share(way, found.unchanged, "to the letter")
            for way, found in _ways(scores, name).items()
        ),
    )
    if seen.kinds:
        rows = [_seeing_of_kind(*item, name) for item in seen.kinds.items()]
        yield Section(f"Seeing by {evaluation.by}, beside irrelevant {name}", tuple(rows))


def _retention_scores(
    scores: SeeingScores, modality: str, asked: Mapping[str, float]
) -> Iterator[Row]:
    for way, found in _ways(scores, modality).items():
        if found.retention is None:
            yield Row(way, "none", "", "the base answers none right")
        else:
            target = asked.get("seeing") if way == "irrelevant" else None
            yield _share(way, found.retention, "of the base's accuracy", target)


def _ways(scores: SeeingScores, modality: str) -> Mapping[str, SeeingScore]:
    kinds = {f"irrelevant: {kind}": found for kind, found in scores.irrelevant.items()}
    ways = {f"{modality} absent": scores.absent, "irrelevant": scores.overall, **kinds}
    return ways if scores.relevant is None else {**ways, "relevant": scores.relevant}


def _seeing_of_kind(kind: str, scores: SeeingScores, modality: str) -> Row:
    unchanged = percent(scores.overall.unchanged.value)
    note = f"base {percent(scores.base.value)}, {unchanged} unchanged, n {scores.base.n}"
    if scores.relevant is not None:
        note += f"; beside relevant {modality} {percent(scores.relevant.accuracy.value)}"
    return _share(kind, scores.overall.accuracy, note)


def _off(evaluation: Evaluation) -> Iterator[Row]:
    absent, shut = evaluation.retention.absent, evaluation.gate_zero
    agreed = percent(absent.agreement)
    yield Row("agreement, absent", agreed, "", f"{absent.texts} texts", absent.agreement == 1)
    yield _identical("logits, absent", absent.identical, f"{absent.texts} texts")
    yield _identical("logits, gate at 0", shut.logits_identical, f"{shut.examples} examples")
    yield _identical("tokens, gate at 0", shut.tokens_identical, f"{shut.examples} examples")


def _agreements(evaluation: Evaluation, asked: Mapping[str, float]) -> Iterator[Row]:
    for name, found in _gate_open(evaluation).items():
        note = "meant to differ" if name == "relevant" else f"{found.agreement.n} texts"
        target = asked.get("agreement") if name == "irrelevant" else None
        yield _share(name, found.agreement, note, target)


def _divergences(evaluation: Evaluation) -> Iterator[Row]:
    for name, found in _gate_open(evaluation).items():
        interval = f"{found.kl.low:.2g} to {found.kl.high:.2g}"
        yield Row(name, f"{found.kl.value:.2g}", interval, f"{found.positions:,} positions")


def _gate_open(evaluation: Evaluation) -> Mapping[str, Agreement]:
    kept = evaluation.retention
    kinds = {f"irrelevant: {kind}": found for kind, found in kept.counterfactual.items()}
    return {"irrelevant": kept.overall, **kinds, "relevant": kept.relevant}


def _all_costs(evaluation: Evaluation) -> Iterator[Row]:
    state = "frozen" if evaluation.base_changed is None else "in the base"
    base = f"{count(evaluation.base_parameters)} {state}"
    yield Row("trainable parameters", f"{evaluation.trainable_parameters:,}", "", base)
    yield from _measured(evaluation)


def _measured(evaluation: Evaluation) -> Iterator[Row]:
    """The caller's costs: sizes and durations by the end of their names, plain numbers else."""
    for name, value in evaluation.costs.items():
        thing, _, unit = name.rpartition("_")
        if unit == "bytes":
            yield Row(thing.replace("_", " ") or "bytes", size(value))
        elif unit == "seconds":
            yield Row(thing.replace("_", " ") or "seconds", duration(value))
        else:
            yield Row(name.replace("_", " "), f"{value:g}")


def _share(name: str, estimate: Estimate, note: str, target: float | None = None) -> Row:
    value, met = percent(estimate.value), None
    if target is not None:
        met = estimate.value >= target
        note = f"{note}; target {percent(target)}"
    return Row(name, value, interval(estimate), note, met)


def _difference(name: str, estimate: Estimate, target: float | None) -> Row:
    met, note = None, "paired"
    if target is not None:
        met, note = estimate.value >= target, f"paired; target {points(target)}"
    return Row(name, points(estimate.value), interval_points(estimate), note, met)


def _identical(name: str, identical: bool, note: str) -> Row:
    return Row(name, "identical" if identical else "DIFFER", "", note, identical)


_MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("")}


def table(evaluation: Evaluation, targets: Mapping[str, float] | None = None) -> Group:
    """What to print: gain, off and keeps, and below them every result with its interval.

    Args:
        evaluation: what was measured.
        targets: least values of any of ``TARGETS``, to be marked met or not.

    Raises:
        DataError: a target is unknown.
    """
    return Group(_headlines(headlines(evaluation)), _Details(sections(evaluation, targets)))


def _headlines(three: tuple[Headline, ...]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in three:
        grid.add_column(ratio=1)
    grid.add_row(*map(_panel, three))
    return grid


def _panel(headline: Headline) -> Panel:
    lines = (
        Text(headline.number, "bold cyan", justify="center"),
        Text(headline.meaning, justify="center"),
        Text(headline.context, "dim", justify="center"),
    )
    return Panel(Group(*lines), title=headline.name, padding=(0, 1))


_NOTES = 76
"""Columns of a terminal that has room for notes beside the figures."""


@attrs.frozen
class _Details:
    """The groups as a table whose figures are whole in any usual width."""

    groups: tuple[Section, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        notes = options.max_width >= _NOTES
        details = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        details.add_column("")
        details.add_column("result", justify="right", no_wrap=True)
        details.add_column("95 % interval", justify="right", no_wrap=True)
        details.add_column("", no_wrap=True)  # met or not
        if notes:
            details.add_column("", style="dim")
        for group in self.groups:
            details.add_row(Text(group.title, "bold"))
            for row in group.rows:
                cells = map(Text, (f"  {row.name}", row.value, row.interval))
                details.add_row(*cells, _MARKS[row.met], *([Text(row.note)] if notes else []))
            details.add_section()
        yield details
