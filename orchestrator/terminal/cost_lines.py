"""Says what the cost columns mean, what packs did, and why a smaller micro-batch is faster."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.terminal.format import megabytes_text, rate_text
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.cost import ACCUMULATION, BATCH, Costs, measure

_NOTICEABLE = 1.05  # times as fast


def cost_lines(history: History) -> list[str]:
    """Lines on the costs of the trials; none if each trained alone and nothing stands out."""
    costs = Costs(history)
    return [
        *_about_columns(history, costs),
        *_about_packs(history),
        *_about_padding(history, costs),
    ]


def _about_columns(history: History, costs: Costs) -> Iterator[str]:
    devices = dict.fromkeys(event.device for event in history.costs if event.parts is not None)
    if devices:
        yield (
            "tok/s, mem MB and optim MB are of training a config alone, measured after the trials "
            f"on {', '.join(devices)}."
        )
    if not (unknown := costs.unknown()):
        return
    trials = f"{unknown} trial{'' if unknown == 1 else 's'}"
    reasons = dict.fromkeys(event.reason for event in history.costs if event.reason)
    if costs.next_to_measure() is None and reasons:
        yield f"What {trials} cost alone could not be measured: {next(iter(reasons))}"
    elif costs.next_to_measure() is not None and not history.unfinished():
        yield f"What {trials} cost alone is not measured yet: the same command does it."


def _about_packs(history: History) -> Iterator[str]:
    """What the packs did together: their speed says how fast the sweep was, not a config."""
    lanes = [record for record in history.trials.values() if record.is_lane]
    tokens = sum(_tokens(record) for record in lanes)
    if not tokens or not history.pack_s:
        return
    peak = max((mb for record in lanes if (mb := measure(record, "peak_memory_mb"))), default=None)
    memory = "" if peak is None else f", at most {megabytes_text(peak)} MB of memory"
    yield (
        f"Packs of trials trained at {rate_text(tokens / history.pack_s)} tokens a second and "
        f"device, evaluations included{memory}."
    )


def _tokens(record: Record) -> float:
    latest = 0 if record.latest is None else record.latest.tokens
    return record.totals.get("tokens", latest)


def _about_padding(history: History, costs: Costs) -> Iterator[str]:
    """Of configs with equal optimizer steps, one whose micro-batch is smaller and yet faster."""
    alike: dict[str, dict[int, tuple[float, float]]] = {}
    for record in history.trials.values():
        speed, padding = costs.of(record).tokens_per_second, _padding(record)
        if record.state is not State.COMPLETED or speed is None or padding is None:
            continue
        batch, accumulation = costs.sizes(record)
        sizes = (f"trainer.{BATCH}", f"trainer.{ACCUMULATION}")
        rest = {key: value for key, value in record.values.items() if key not in sizes}
        alike.setdefault(repr((batch * accumulation, rest)), {})[batch] = speed, padding
    for found in alike.values():
        large, small = max(found), max(found, key=lambda batch: found[batch][0])
        (fast, less), (slow, more) = found[small], found[large]
        if small < large and fast > _NOTICEABLE * slow and less < more:
            explained = min((1 - less) / (1 - more), fast / slow) - 1
            more_than_that = fast / slow - 1 - explained
            line = (
                f"Micro-batches of {small} are {fast / slow - 1:.0%} faster than of {large} at "
                f"equal optimizer steps. Less padding explains {explained:.0%}: rows are padded to "
                f"the longest of their micro-batch, which makes {more:.0%} of the tokens padding "
                f"with {large} rows, {less:.0%} with {small}."
            )
            yield (
                f"{line} The rest is how the device takes larger passes."
                if more_than_that > 0.05
                else line
            )
            return


def _padding(record: Record) -> float | None:
    """The share of padding among the tokens of a trial's micro-batches."""
    padded = record.totals.get("padded_tokens")
    return 1 - record.totals["tokens"] / padded if padded and "tokens" in record.totals else None
