"""The laws of docs/laws.md, each asked of a bench: a function that returns a verdict.

L1 to L7 in their order (L8 has a module of its own, prompt.py), then checks without a number, which
guard the laws against holding for a wrong reason: that a modality which is on reaches the outputs,
that pictures do, that decoding with a cache agrees with decoding without one, and that threads
cannot see each other's samples.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_snapshot import BaseSnapshot, TensorRecord
from safe_framework.core.hook_inventory import hooks_on, hooks_removed, unknown_hooks
from safe_framework.core.layer_hooks import registered
from safe_framework.core.model import SafeModel
from safe_framework.interfaces import registry
from safe_framework.interfaces.types import PRESENT
from safe_framework.utils.tensors import as_bytes
from safe_framework.verification.bench import Bench, call_counter, noisy_adapters, nonzero_deltas
from safe_framework.verification.calls import (
    FORWARD,
    GREEDY,
    OFF_METHODS,
    PER_ROW_METHODS,
    UNCACHED,
    Call,
    Level,
    calls_to_compare,
    with_other_tokens,
    with_two_samples,
)
from safe_framework.verification.certificate import Comparison, Law, law_result, not_applicable
from safe_framework.verification.outcome import (
    Operation,
    Outcome,
    capture_outcome,
    difference,
    trace_call,
    trace_difference,
    trace_digest,
    without_extra_preamble,
)
from safe_framework.verification.pictures import PictureBench
from safe_framework.verification.work import call_units

_UNTOUCHED = ("L1", "Untouched")
_OFF = ("L2", "Off is the base")
_OPERATIONS = ("L2", "Off runs the base's operations")
_PLUGINS = ("L3", "Plugins propose")
_ROWS = ("L4", "Rows")
_FRESH = ("L5", "Fresh is silent")
_COMPOSITION = ("L6", "Composition")
_NOTHING_SILENT = ("L7", "Nothing silent")
_REACHES_OUTPUTS = ("", "On is heard")
_DECODING = ("", "Cached decoding agrees")
_THREADS = ("", "Threads")
_SEEN = ("", "Pictures are seen")
"""Key and name of each law, as a certificate has them."""


# L1: nothing of the base has changed since it was wrapped, nor did the calls change it.


def base_differences(snapshot: BaseSnapshot, base: nn.Module, tokenizer: Any = None) -> list[str]:
    """What of ``base`` and its tokenizer is no longer as it was when it was wrapped."""
    now = BaseSnapshot.of(base, tokenizer)
    return [
        *_tensor_differences(snapshot, now.tensors),
        *_module_differences(snapshot.modules, now.modules),
        *_setting_differences(snapshot.settings, now.settings),
        *_hook_differences(snapshot, base),
        *_method_differences(snapshot.replaced, now.replaced),
        *_mode_differences(snapshot.training, now.training),
        *_tokenizer_differences(snapshot.words, now.words),
    ]


def _tensor_differences(snapshot: BaseSnapshot, now: Mapping[str, TensorRecord]) -> Iterator[str]:
    for path, mark in snapshot.tensors.items():
        if path not in now:
            yield f"weight `{path}` is gone"
        elif found := _tensor_difference(path, mark, now[path], path in snapshot.changed):
            yield found
    yield from (f"weight `{path}` is new" for path in now if path not in snapshot.tensors)


def _tensor_difference(path: str, then: TensorRecord, now: TensorRecord, changed: bool) -> str:
    """The worst that happened to one tensor."""
    if then.shape != now.shape:
        if then.embedding and then.shape[1:] == now.shape[1:]:
            return f"embedding `{path}` was resized from {then.shape[0]} to {now.shape[0]} rows"
        return f"weight `{path}` had shape {then.shape} and has {now.shape}"
    if then.dtype != now.dtype:
        return f"weight `{path}` was {then.dtype} and is {now.dtype}"
    if changed:
        return ""  # base fine-tuning trains it: its numbers may change
    if then.sample != now.sample and then.sample and now.sample:
        return f"weight `{path}` holds other numbers"
    if then.frozen and not now.frozen:
        return f"weight `{path}` takes a gradient: it was frozen and is not"
    if then.object is None or now.object is None:
        return ""  # a buffer, a copy of the base, or offloaded
    if then.object() is not now.object():
        return f"weight `{path}` is another parameter, put in the place of the first"
    if then.version != now.version:
        return f"weight `{path}` was written to in place"
    return ""


def _module_differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for path, kind in then.items():
        if path not in now:
            yield f"module `{path}` (`{kind}`) is gone"
        elif kind != now[path]:
            yield f"module `{path}` was a `{kind}` and is a `{now[path]}`"
    yield from (f"module `{path}` (`{now[path]}`) is new" for path in now if path not in then)


def _setting_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(then.keys() | now.keys()):
        old, new = then.get(name, "missing"), now.get(name, "missing")
        if old != new:
            yield f"`{name}` was {old} and is {new}"


def _hook_differences(snapshot: BaseSnapshot, base: nn.Module) -> Iterator[str]:
    for placed in unknown_hooks(hooks_on(base), snapshot.hooks):
        module, kind, name = placed.name
        yield f"`{module}` has a stray {kind} of `{name}`"


def _method_differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name, other in now.items():
        if then.get(name) != other:
            yield f"method `{name}` was replaced by `{other}`"


def _mode_differences(then: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    yield from (f"`{path}` is in training mode" for path in sorted({*now} - {*then}))


def _tokenizer_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if not then or not now or then == now:
        return
    added = sorted(now["added"].keys() - then["added"].keys())
    if added:
        yield f"the tokenizer was given other tokens: {', '.join(f'`{token}`' for token in added)}"
    elif then["count"] != now["count"]:
        yield f"the tokenizer had {then['count']} tokens and has {now['count']}"
    yield from _setting_differences(then["special"], now["special"])
    other = [number for number, word in then["words"].items() if now["words"].get(number) != word]
    if other and then["count"] == now["count"]:
        yield f"the tokenizer has another word for token {other[0]}"


def tensor_digests(base: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer, also of those that are not saved.

    Offloaded ones have none: their bits are not here.
    """
    tensors = dict(base.named_parameters()) | dict(base.named_buffers())
    here = {path: tensor for path, tensor in tensors.items() if not tensor.is_meta}
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        return dict(zip(here, pool.map(_digest, here.values()), strict=True))


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(as_bytes(tensor).cpu().numpy().data).hexdigest()


def untouched(
    base: nn.Module,
    snapshot: BaseSnapshot,
    found: list[str],
    before: Mapping[str, str],
    identity: Mapping[str, str],
) -> Law:
    """The verdict on L1.

    Args:
        base: after the calls.
        snapshot: of the base when it was wrapped.
        found: how it differs from it, before and after the calls.
        before: its digests before the calls.
        identity: its fingerprints after the calls.
    """
    after = tensor_digests(base)
    findings = list(dict.fromkeys(found))
    findings += [
        f"tensor `{path}` changed during the calls"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    if snapshot.identity is not None:
        findings += [
            f"{what} of the base are not those that the adapter was loaded on"
            for part, what in {"weights": "the weights", "tokenizer": "the words"}.items()
            if identity[part] and identity[part] != snapshot.identity.get(part, identity[part])
        ]
    return law_result(*_UNTOUCHED, _untouched_detail(snapshot, after, base), findings)


def _untouched_detail(snapshot: BaseSnapshot, after: Mapping[str, str], base: nn.Module) -> str:
    offloaded = len(list(base.named_parameters())) + len(list(base.named_buffers())) - len(after)
    modules, settings = len(snapshot.modules), len(snapshot.settings)
    parts = [
        f"{len(after)} tensors hashed before and after",
        f"{modules} modules and {settings} settings as when it was wrapped",
    ]
    if snapshot.identity is not None:
        parts.append("weights as recorded with the adapter")
    if offloaded:
        parts.append(f"{offloaded} offloaded tensors by shape alone")
    return "; ".join(parts)


# L2: with its modalities off, the model gives the base's bits by the base's operations.


def off_is_base(
    benches: Mapping[Bench, Level], advance: Callable[[Bench, str, int], None]
) -> tuple[Law, list[Comparison]]:
    """The verdict on L2, and each call that was compared bit by bit.

    Args:
        benches: with how many calls of each are compared.
        advance: called with a bench, what was compared, and how many forward calls it took.
    """
    made: list[Comparison] = []
    unsteady: list[str] = []
    for bench, level in benches.items():
        for call, ways in calls_to_compare(level):
            expected = bench.run_unwrapped(call)
            here = [_compare_off(bench, call, way, expected) for way in ways]
            if not all(c.same for c in here) and difference(bench.run_unwrapped(call), expected):
                unsteady.append(bench.name(call))
            else:
                made += here
            advance(bench, bench.name(call), call_units(call, ways))
    if not made:
        return not_applicable(*_OFF, "the base does not repeat itself in any call"), made
    findings = [f"{c.call}, {c.off}: {c.note}" for c in made if not c.same]
    return law_result(*_OFF, _off_detail(made, unsteady), findings), made


def _compare_off(bench: Bench, call: Call, way: str, expected: Outcome) -> Comparison:
    found = difference(bench.run_off(call, way), expected)
    note = found or (f"both raise {expected.error}" if expected.error else "")
    return Comparison(bench.name(call), way, call.mode, not found, note)


def _off_detail(made: list[Comparison], unsteady: list[str]) -> str:
    parts = [f"{len(made)} calls bit for bit"]
    if refused := sorted({c.call for c in made if c.same and c.note}):
        parts.append(f"the base itself refuses {', '.join(refused)}")
    if unsteady:
        parts.append(f"the base does not repeat itself in {', '.join(unsteady)}")
    return "; ".join(parts)


def same_operations(bench: Bench, made: list[Comparison]) -> Law:
    """Whether off also runs what the base runs; enters the traces into ``made``."""
    findings, total = [], 0
    calls = bench.supported(FORWARD, GREEDY)
    for call in calls:
        expected = _unwrapped_trace(bench, call)
        total += len(expected)
        for way in OFF_METHODS:
            with bench.switched_off(call, way) as inputs:
                _, seen = trace_call(bench.method(call), inputs, bench.model.base)
            if way in PER_ROW_METHODS:  # before the base is called
                seen = without_extra_preamble(seen, expected)
            if found := trace_difference(seen, expected):
                findings.append(f"{call.name}, {way}: {found}")
            else:
                _record_trace(made, bench.name(call), way, seen)
    names = " and ".join(call.name for call in calls)
    detail = f"{total:,} operations of {names}, in {len(OFF_METHODS)} ways to be off"
    return law_result(*_OPERATIONS, detail, findings)


def _unwrapped_trace(bench: Bench, call: Call) -> list[Operation]:
    with bench.unwrapped():
        inputs = bench.inputs(call)
        return trace_call(bench.base_method(call), inputs, bench.model.base)[1]


def _record_trace(made: list[Comparison], name: str, way: str, seen: list[Operation]) -> None:
    for index, comparison in enumerate(made):
        if (comparison.call, comparison.off) == (name, way):
            made[index] = attrs.evolve(comparison, operations=len(seen), trace=trace_digest(seen))


# L3: no plugin runs while its modality is off, and none misbehaves while it is on.


_NEEDS_PROJECTOR = ("every token masked",)  # the mask is only known behind the projector


def plugins_propose(bench: Bench) -> Law:
    """The verdict on L3."""
    findings = []
    calls = bench.supported(FORWARD, GREEDY)
    for call in calls:
        for way in OFF_METHODS:
            with call_counter(bench.model) as ran:
                bench.run_off(call, way)
            early = [path for path in ran if way not in _NEEDS_PROJECTOR or ".fusion" in path]
            if early:
                findings.append(f"{call.name}, {way}: module `{early[0]}` ran")
        with call_counter(bench.model) as ran:
            on = bench.run_on(call)
        if on.error:
            findings.append(f"{call.name} with the senses on raises {on.error}")
        if silent := [name for name in bench.model.modalities if f"{name}.fusion" not in ran]:
            findings.append(f"{call.name} with the senses on never called `{silent[0]}`")
    detail = f"no module of a sense ran in {len(calls) * len(OFF_METHODS)} calls"
    return law_result(*_PLUGINS, detail, findings)


# L4: in a mixed batch, a row without a sample keeps the base's bits.


_ROW_CALLS = (FORWARD, Call("forward, padded left", "forward", "left"), GREEDY)


def rows_independent(bench: Bench) -> Law:
    """The verdict on L4, which only a base that computes rows independently can have."""
    if bench.rows < 2:
        return not_applicable(*_ROWS, "the inputs have a single row")
    if mixes := where_rows_mix(bench):
        if not bench.model.split_rows:
            return not_applicable(*_ROWS, f"the base computes rows together: {mixes}")
        detail = "the base computes rows together; rows without a sample ran apart"
    else:
        detail = "the base computes rows apart"
    with noisy_adapters(bench.model):
        calls = bench.supported(*_ROW_CALLS)
        findings = [found for call in calls for found in _mixed_batch_findings(bench, call)]
    return law_result(*_ROWS, f"{detail}; {4 * len(calls)} mixed batches", findings)


def where_rows_mix(bench: Bench) -> str:
    """Where a row of the base changes with the tokens of another row; empty if nowhere."""
    last = bench.rows - 1
    for call in bench.supported(*_ROW_CALLS):
        before = bench.run_unwrapped(call)
        for other, kept in ((last, 0), (0, last)):
            batch = bench.batches[call.batch]
            changed = with_other_tokens(bench.model.base, batch, other)
            with bench.unwrapped():
                inputs = bench.inputs(call, {call.batch: changed})
                after = capture_outcome(bench.base_method(call), inputs, call.mode)
            if found := difference(_row(bench, after, kept), _row(bench, before, kept), "alone it"):
                return f"in {call.name}, with other words in row {other}, {found}"
    return ""


def _row(bench: Bench, seen: Outcome, row: int) -> Outcome:
    return seen.select_rows([row], bench.rows)


def _mixed_batch_findings(bench: Bench, call: Call) -> Iterator[str]:
    """What is wrong where only the bench's heard rows have a sample."""
    base = bench.run_unwrapped(call)
    present = torch.isin(torch.arange(bench.rows), torch.tensor(bench.heard))
    for way, changes in _ways_to_lack_samples(bench, present).items():
        seen = bench.run_on(call, **changes)
        for row, heard in enumerate(present.tolist()):
            found = _row_difference(bench, seen, base, row)
            if found and not heard:
                yield f"{call.name}, {way}: row {row} has no sample, but {found}"
            if heard and not found:
                yield f"{call.name}, {way}: row {row} has a sample and did not change"


def _row_difference(bench: Bench, seen: Outcome, base: Outcome, row: int) -> str:
    """Of what both give: a call whose rows ran apart returns no cache."""
    shared = seen.leaves.keys() & base.leaves.keys()
    mine, silent = (
        _row(bench, Outcome({path: given.leaves[path] for path in shared}, given.error), row)
        for given in (seen, base)
    )
    return difference(mine, silent)


def _ways_to_lack_samples(bench: Bench, present: Tensor) -> dict[str, dict[str, Any]]:
    here = present.to(next(iter(bench.samples.values())).device)
    masks = {key for key, value in bench.samples.items() if value.dtype == torch.bool}
    marks = {key for key in masks if key.endswith(f"__{PRESENT}")}
    masks -= marks
    doubled = with_two_samples(bench.samples)
    return {
        "absent": _only_in(here, bench.samples, marks),
        "absent beside two samples": doubled | _only_in(here, doubled, marks),
        "gate 0": {"gate": here.float()},
        **({"every token masked": _only_in(here, bench.samples, masks)} if masks else {}),
    }


def _only_in(
    here: Tensor, samples: Mapping[str, Tensor], keys: Collection[str]
) -> dict[str, Tensor]:
    """Masks of samples, False but in some rows."""
    return {key: samples[key] & here.view(-1, *[1] * (samples[key].ndim - 1)) for key in keys}


# L5: a modality that was never trained leaves the outputs exactly the base's at gate 1.


_FRESH_CALLS = (
    FORWARD,
    Call("forward, padded left", "forward", "left", mode="inference"),
    GREEDY,
)


def fresh_is_silent(bench: Bench) -> Law:
    """The verdict on L5: of the model itself if it is fresh, else of a fresh one by its recipe."""
    with nonzero_deltas(bench.model) as trained:
        bench.run_on(FORWARD)
    if not trained:
        return law_result(*_FRESH, "the model is fresh", _fresh_findings(bench))
    recipe = bench.model.built_from
    if recipe is None or recipe.needs_objects:
        why = "the model is trained, and no recipe says how to make a fresh one"
        return not_applicable(*_FRESH, why)
    with _fresh_modalities(bench) as fresh:
        return law_result(*_FRESH, "a fresh sense by the same recipe", _fresh_findings(fresh))


def _fresh_findings(bench: Bench) -> list[str]:
    compared = (
        (call.name, difference(bench.run_on(call), bench.run_unwrapped(call)))
        for call in bench.supported(*_FRESH_CALLS)
    )
    return [f"{name} at gate 1: {found}" for name, found in compared if found]


@contextmanager
def _fresh_modalities(bench: Bench) -> Iterator[Bench]:
    """The same base with new projectors and adapters, and the encoders that are there already."""
    model = bench.model
    assert model.built_from is not None
    with hooks_removed([placed for placed in hooks_on(model.base) if placed.ours]):
        fresh = SafeModel(model.base, layers_path=model.stack.path, example=model._example)
        fresh.split_rows = model.split_rows
        try:
            torch.manual_seed(model.built_from.training.seed)
            _add_fresh_modalities(fresh, model)
            yield attrs.evolve(bench, model=fresh)
        finally:
            fresh.detach()


def _add_fresh_modalities(fresh: SafeModel, model: SafeModel) -> None:
    assert model.built_from is not None
    for name, spec in model.built_from.modalities.items():
        if name not in model.modalities:
            continue
        encoder, facts = model.modality(name).encoder, fresh.facts()
        make_projector: type[Any] = registry.projectors.load(spec.projector.use)
        make_fusion: type[Any] = registry.fusion_adapters.load(spec.fusion.use)
        fresh.add_modality(
            name,
            encoder=encoder,
            projector=make_projector(encoder.dim, facts.hidden_size, **spec.projector.options),
            fusion=make_fusion(facts, **spec.fusion.options),
        )


# L6: with some modalities off, the model is the one that has only the others.


def modalities_compose(bench: Bench) -> Law:
    """The verdict on L6."""
    names = list(bench.model.modalities)
    if len(names) < 2:
        return not_applicable(*_COMPOSITION, "the model has one sense")
    subsets = [off for count in range(1, len(names)) for off in combinations(names, count)]
    with noisy_adapters(bench.model):
        findings = [found for off in subsets if (found := _modalities_left_out(bench, off))]
    return law_result(*_COMPOSITION, f"each of {len(subsets)} choices of senses alone", findings)


def _modalities_left_out(bench: Bench, off: tuple[str, ...]) -> str:
    """How the model with these modalities off differs from one that lacks them."""
    absent = {k: v for k, v in bench.samples.items() if k.partition("__")[0] not in off}
    for call in bench.supported(FORWARD, GREEDY):
        inputs = bench.inputs(call) | {"gate": 1.0}
        with bench.without_modalities(*off):
            lacking = bench.run(call, inputs | absent)
        with bench.model.off(*off):
            seen = bench.run(call, inputs | dict(bench.samples))
        if found := difference(seen, lacking, "the model without it"):
            return f"{call.name} with {' and '.join(off)} off: {found}"
    return ""


# L7: what cannot be used is refused, instead of being answered as if nothing had been given.


def nothing_silent(bench: Bench) -> Law:
    """The verdict on L7, as far as one call can show it."""
    inputs = bench.inputs(FORWARD)
    name = next(iter(bench.model.modalities))
    samples = dict(bench.samples)
    short = {key: value[:-1] for key, value in samples.items()}
    unknown = {f"un{name}__{PRESENT}": samples[f"{name}__{PRESENT}"]}
    with bench.unwrapped():
        bypassed = bench.run(FORWARD, inputs | samples | {"gate": 1.0})
    seen = {
        "a fused layer was bypassed": bypassed,
        "one sample was missing": bench.run(FORWARD, inputs | short),
        "a sample came for a sense that is not there": bench.run(FORWARD, inputs | unknown),
    }
    findings = [f"{what}, and the call answered" for what, out in seen.items() if not out.error]
    return law_result(
        *_NOTHING_SILENT, f"{len(seen)} calls that cannot be heard are refused", findings
    )


# A modality that is on reaches the outputs: L2 does not hold because nothing is ever added.


def on_reaches_outputs(bench: Bench) -> Law:
    """Whether noise as deltas reaches every row, and the trained deltas reach the outputs."""
    findings = []
    for call in bench.supported(FORWARD, GREEDY):
        silent = bench.run_unwrapped(call)
        with noisy_adapters(bench.model):
            seen = bench.run_on(call)
        if seen.error:
            findings.append(f"{call.name} with the senses on raises {seen.error}")
            continue
        unreached = [
            row
            for row in range(bench.rows)
            if not difference(_row(bench, seen, row), _row(bench, silent, row))
        ]
        findings += [f"{call.name}: a made-up delta did not reach row {row}" for row in unreached]
    with nonzero_deltas(bench.model) as trained:
        seen = bench.run_on(FORWARD)
    if trained and not seen.error and not difference(seen, bench.run_unwrapped(FORWARD)):
        findings.append(f"the delta of {' and '.join(sorted(trained))} did not reach the outputs")
    own = " and its own" if trained else "; its own is still zero"
    return law_result(*_REACHES_OUTPUTS, f"made-up deltas reach every row{own}", findings)


# Another picture changes the logits: the laws with pictures do not hold because the base is blind.


def pictures_are_seen(benches: Sequence[PictureBench], note: str = "") -> Law:
    """Whether another picture changes the logits of its row, with the modalities off and on.

    Args:
        benches: with pictures in their rows.
        note: what could not be asked of them.
    """
    findings = [found for one in benches for found in _unseen(one)]
    rows = "; ".join(f"rows: {one.rows}" for one in benches)
    detail = f"another picture changes the logits, with the senses off and on; {rows}"
    return law_result(*_SEEN, f"{detail}; {note}" if note else detail, findings)


def pictures_not_asked(why: str) -> Law:
    """The verdict where no row with a picture could be made."""
    return not_applicable(*_SEEN, f"pictures were not asked: {why}")


def _unseen(pictures: PictureBench) -> Iterator[str]:
    """The rows whose logits another picture does not change."""
    bench = pictures.bench
    others = {"plain": pictures.others}
    for call in bench.supported(FORWARD, GREEDY):
        other = bench.inputs(call, others)
        with bench.unwrapped():
            alone = capture_outcome(bench.base_method(call), other, call.mode)
        with bench.switched_off(call, "off()") as given:
            off = bench.run(call, given | other)
        with noisy_adapters(bench.model):
            seen = {
                "": (bench.run_unwrapped(call), alone),
                " with the senses off": (bench.run_off(call, "off()"), off),
                " with the senses on": (bench.run_on(call), bench.run_on(call, **other)),
            }
        for way, (first, second) in seen.items():
            if error := second.error:
                yield f"{bench.name(call)}{way}: another picture raises {error}"
                continue
            yield from (
                f"{bench.name(call)}{way}: another picture in row {row} changes no logit"
                for row in pictures.pictured
                if not _logits_of_row_differ(bench, first, second, row)
            )


def _logits_of_row_differ(bench: Bench, first: Outcome, second: Outcome, row: int) -> bool:
    one, two = (_row(bench, seen.starting_with("logits"), row) for seen in (first, second))
    return bool(difference(one, two))


# With the modalities on, decoding with a cache gives the tokens of decoding without one.


_OWN_ERRORS = ("PluginError", "InjectionError", "SafeError", "SampleError")


def cached_decoding_agrees(bench: Bench) -> Law:
    """Whether both decode the same tokens, where the base alone does, but for rounding."""
    base = bench.run_unwrapped(GREEDY), bench.run_unwrapped(UNCACHED)
    if base[0].error:
        return not_applicable(*_DECODING, f"the base does not decode: {base[0].error}")
    if found := _tokens_differ(*base) or _logits_differ(*base):
        return not_applicable(*_DECODING, f"the base alone does not agree: {found}")
    cached, uncached = bench.run_on(GREEDY), bench.run_on(UNCACHED)
    if uncached.error and not (cached.error or uncached.error.startswith(_OWN_ERRORS)):
        why = f"the base refuses to read again what it wrote: {uncached.error}"
        return not_applicable(*_DECODING, why)  # such as the token of an image
    found = _tokens_differ(cached, uncached)
    if found and (gap := _near_tie(cached)):
        return not_applicable(*_DECODING, f"{found}, but two tokens are nearly tied: {gap}")
    detail = "the same tokens with the senses on, with a cache and without"
    return law_result(*_DECODING, detail, [found] if found else [])


def _tokens_differ(cached: Outcome, uncached: Outcome) -> str:
    name = "sequences"
    return difference(
        cached.starting_with(name), uncached.starting_with(name), "without a cache it"
    )


def _logits_differ(cached: Outcome, uncached: Outcome) -> str:
    """How far the logits are apart, if it is more than rounding."""
    pairs = zip(_step_logits(cached), _step_logits(uncached), strict=True)
    parts = [((a - b).abs().max() / a.abs().max()).item() for a, b in pairs]
    farthest = max(parts, default=0.0)
    return f"logits {farthest:.1e} apart" if farthest > _rounding_bound(cached) else ""


def _near_tie(seen: Outcome) -> str:
    """The least distance of the best two tokens, if rounding could decide between them."""
    steps = _step_logits(seen)
    gaps = [(step.topk(2).values.diff().abs().min() / step.abs().max()).item() for step in steps]
    least = min(gaps, default=1.0)
    return f"{least:.1e} of the largest logit" if least < _rounding_bound(seen) else ""


def _step_logits(seen: Outcome) -> list[Tensor]:
    return [logits.double() for logits in seen.starting_with("logits.").leaves.values()]


def _rounding_bound(seen: Outcome) -> float:
    """What rounding may add up to in a deep model: the root of its smallest step."""
    kinds = [logits.dtype for logits in seen.starting_with("logits.").leaves.values()]
    return math.sqrt(max((torch.finfo(kind).eps for kind in kinds), default=0.0))


# A modality that is on in one thread is off in another, at the same moment.


_TIMEOUT = 60.0  # seconds


def threads_isolated(bench: Bench) -> Law:
    """Whether an off call is the base's while another thread is held inside an on call."""
    expected = bench.run_unwrapped(FORWARD)
    with noisy_adapters(bench.model), _held_inside_call(bench) as holder:
        seen = {way: bench.run_off(FORWARD, way) for way in ("not given", "off()")}
        direct = bench.run_base(FORWARD)
    found = {way: difference(out, expected) for way, out in seen.items()}
    found["the base called directly"] = difference(direct, expected)
    findings = [
        f"{way}, while another thread hears: {text}; the sense leaked between threads"
        for way, text in found.items()
        if text
    ]
    if holder.outcome.error:
        findings.append(f"the thread that hears raised {holder.outcome.error}")
    elif not difference(holder.outcome, expected):
        findings.append("the thread that hears heard nothing")
    return law_result(*_THREADS, "off is the base while another thread hears", findings)


class _HeldCall:
    """A thread that makes an on call and waits inside it, in the last hooked layer."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.outcome = bench, Outcome({}, "it never ended")
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._call, daemon=True)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if threading.current_thread() is self.thread:
            self.inside.set()
            self.leave.wait(_TIMEOUT)

    def _call(self) -> None:
        try:
            self.outcome = self.bench.run_on(FORWARD)
        finally:
            self.inside.set()


@contextmanager
def _held_inside_call(bench: Bench) -> Iterator[_HeldCall]:
    holder = _HeldCall(bench)
    layers = bench.model.stack.of(bench.model.base)
    fused = max(max(bench.model.modality(n).fusion.layers) for n in bench.model.modalities)
    with registered(layers[fused].register_forward_pre_hook(holder)):
        try:
            holder.thread.start()
            holder.inside.wait(_TIMEOUT)
            yield holder
        finally:
            holder.leave.set()
            holder.thread.join(_TIMEOUT)
