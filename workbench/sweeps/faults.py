"""The fault ledger of a sweep: what was tried again, waited for, lost and repeated, stage by stage."""

from __future__ import annotations

import polars as pl

from workbench.store.database import Database

_SCHEMA = {
    "stage": pl.String,
    "attempts": pl.Int64,
    "failed": pl.Int64,
    "crashed": pl.Int64,
    "stopped": pl.Int64,
    "lost": pl.Int64,
    "repeated": pl.Int64,
    "waited": pl.Float64,
    "calls": pl.Int64,
    "retried": pl.Int64,
    "retries": pl.Int64,
    "backoff": pl.Float64,
    "faults": pl.String,
}


def read_faults(database: Database, sweep_id: int) -> pl.DataFrame:
    """One row a unique stage of the sweep that was attempted in this database, by whichever sweep.

    attempts: how often a process set to work on it; failed, crashed (the process died), stopped (by a person or
    an interrupt) and lost (taken over by another while this one stood still) of them. repeated: items claimed
    again without a value. waited: seconds for others who held the stage or items of it. calls: finished model
    calls; retried of them needed more than one attempt, retries is how many more; backoff: seconds between those;
    faults: what went wrong, as "503 x2, timeout x1".
    """
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT min(s.stage_no), s.kind || ' ' || s.label, count(*),"
            "   count(*) FILTER (WHERE a.outcome = 'failed'),"
            "   count(*) FILTER (WHERE a.outcome = 'crashed' OR (a.ended_at IS NULL AND w.lease_until < now())),"
            "   count(*) FILTER (WHERE a.outcome = 'stopped'), count(*) FILTER (WHERE a.outcome = 'lost'),"
            "   (SELECT coalesce(sum(c.repeated), 0)::int8 FROM claim c JOIN stage g USING (stage_id)"
            "     WHERE g.fingerprint = s.fingerprint),"
            "   sum(a.waited), (SELECT g.details->'calls' FROM stage g WHERE g.fingerprint = s.fingerprint)"
            " FROM sweep_stage s JOIN attempt a USING (fingerprint) JOIN worker w USING (worker_id)"
            " WHERE s.sweep_id = %s GROUP BY s.fingerprint, s.kind, s.label ORDER BY min(s.stage_no)",
            [sweep_id],
        ).fetchall()
    found = []
    for _, stage, *counts, calls in rows:
        calls = calls or {}
        faults = calls.get("faults", {})
        found.append(
            (
                stage,
                *counts,
                calls.get("calls", 0),
                calls.get("retried", 0),
                sum(faults.values()),
                calls.get("waited_seconds", 0.0),
                ", ".join(f"{word} x{count}" for word, count in sorted(faults.items())),
            )
        )
    return pl.DataFrame(found, schema=_SCHEMA, orient="row")


FAULTS = ("failed", "crashed", "stopped", "lost", "repeated", "retries", "waited", "backoff")
"""The columns that are 0 where nothing went wrong."""


def with_faults(faults: pl.DataFrame) -> pl.DataFrame:
    """The stages on which something went wrong."""
    return faults.filter(pl.any_horizontal(pl.col(name) > 0 for name in FAULTS))


def totals(faults: pl.DataFrame) -> dict[str, float]:
    """The sums over all stages, as JSON has them."""
    names = [name for name, kind in _SCHEMA.items() if kind != pl.String]
    return {name: float(faults[name].sum()) for name in names}
