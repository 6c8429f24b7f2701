"""How a plan and what it is expected to cost look in a terminal, or in the pipe behind `workbench plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.console import count, say, show, table

if TYPE_CHECKING:
    from workbench.sweeps.estimate import Cost, Estimate, KindEstimate


def show_plan(estimate: Estimate, place: str) -> None:
    """The question, the data, what is shared and stored and what the rest may cost; `place` is the store's name."""
    plan = estimate.plan
    data = plan.dataset
    say(plan.sweep.question or f"sweep {plan.name}", "bold")
    size = f"{count(len(data.documents), 'document')}, {count(len(data.queries), 'query')}"
    baseline = plan.trials[plan.baseline].label
    say(f"{data.name} ({size}); judged by {plan.sweep.metric} against {baseline}; store: {place}", "dim")
    for note in data.notes:
        say(f"note: {note}")
    for warning in plan.warnings:
        say(f"warning: {warning}", "yellow")
    say(summary(estimate))
    todo = [kind for kind in estimate.kinds if kind.done < kind.stages]
    if todo:
        grid = table("kind", "stages", "done", "items", "calls", "tokens", "seconds", "money", left=())
        grid.columns[0].justify = "left"
        for kind in todo:
            grid.add_row(kind.name, *_figures(kind))
        show(grid)
        if estimate.rough:
            say("~ by the spec alone: chunks that are not cut yet, or tokens that no past call has shown", "dim")


def summary(estimate: Estimate) -> str:
    """What is shared, what is done and what the rest may cost, in a few sentences."""
    plan, unique = estimate.plan, len(estimate.plan.nodes)
    text = f"{count(len(plan.trials), 'trial')} share {count(unique, 'stage')}"
    text += f"; a loop over the trials would run {plan.stages_of_a_loop:,}. "
    if estimate.done == unique:
        return text + "All of them are in the store: nothing is computed."
    text += f"{estimate.done:,} {'is' if estimate.done == 1 else 'are'} done. Expected: "
    text += ", ".join(_parts(estimate.total, rough=estimate.rough)) or "work of unknown length"
    if estimate.unknown:
        text += f", and no past stage says how long these take: {', '.join(estimate.unknown)}"
    if estimate.unpriced:
        text += f". No price is set for {', '.join(estimate.unpriced)} (WORKBENCH_PRICES)"
    return text + "."


def _parts(cost: Cost, *, rough: bool) -> list[str]:
    parts = []
    if cost.calls:
        tokens = f"{cost.prompt_tokens:,} prompt and {cost.output_tokens:,} output tokens"
        parts.append(f"at most {'about ' if rough else ''}{count(cost.calls, 'call')} with {tokens}")
        if cost.money is not None:
            parts.append(f"{_money(cost.money)} in money")
    if cost.seconds is not None:
        parts.append(duration(cost.seconds))
    return parts


def duration(seconds: float) -> str:
    """Expected seconds in words."""
    if seconds < 90:
        return f"about {count(max(1, round(seconds)), 'second')}"
    if seconds < 90 * 60:
        return f"about {seconds / 60:,.0f} min"
    return f"about {seconds / 3600:,.1f} h"


def _money(money: float) -> str:
    return f"{money:,.2f}" if money >= 0.01 or not money else f"{money:.2g}"


def _figures(kind: KindEstimate) -> list[str]:
    cost, rough = kind.cost, "~" if kind.rough else ""
    tokens = cost.prompt_tokens + cost.output_tokens
    return [
        f"{kind.stages:,}",
        f"{kind.done:,}",
        f"{rough}{cost.items:,}",
        f"{rough}{cost.calls:,}" if cost.calls else "",
        f"{rough}{tokens:,}" if cost.calls else "",
        "?"
        if cost.seconds is None
        else f"{rough}{cost.seconds:,.0f}"
        if cost.seconds >= 10
        else f"{rough}{cost.seconds:.1f}",
        "" if not cost.calls else "?" if cost.money is None else f"{rough}{_money(cost.money)}",
    ]
