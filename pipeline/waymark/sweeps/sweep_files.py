"""The files that tell what came of a sweep: pictures, a page, the table."""

import tempfile
from pathlib import Path

from waymark import names
from waymark.comparison.page import Extras
from waymark.comparison.report import Comparison
from waymark.sweeps.configurations import TrialPoint
from waymark.sweeps.sweep import Outcome, Sweep
from waymark.sweeps.sweep_plot import draw_sweep
from waymark.table import number, short_keys

TITLES = {
    "slices": "The objective by each setting",
    "heat_map": "The objective by two settings",
    "parallel": "The objective and all settings",
    "importance": "Importance of the settings",
}


def log_files(sweep: Sweep, table: Comparison, found: Outcome) -> None:
    """Put pictures, sweep.html and sweep.csv among the parent's artifacts."""
    table = table.arranged(sweep.metric if sweep.metric in table.metrics else None)
    points = points_of(table, sweep.metric)
    pictures = {}
    if points and table.keys:
        pictures = draw_sweep(table.keys, points, sweep.metric, sweep.mode)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, content in pictures.items():
            (folder / f"{name}.png").write_bytes(content)
        table.plot(folder / "curves.png")
        shown = {TITLES[name]: content for name, content in pictures.items()}
        table.plot(folder / "sweep.html", extras(sweep, table, found, shown))
        (folder / "sweep.csv").write_text(table.to_csv(), encoding="utf-8")
        sweep.store.log_files(sweep.parent, folder)


def points_of(table: Comparison, metric: str) -> list[TrialPoint]:
    """Return what each row of a comparison achieved, of those that have all keys."""
    points = []
    for row in table.rows:
        known = row.metrics.get(metric)
        if known and all(key in row.values for key in table.keys):
            half = None if known.high is None else known.high - known.final
            mark = "*" if known.final_leads else "~" if known.ties else ""
            values = [row.values[key] for key in table.keys]
            points.append(TrialPoint(values, known.final, half, mark))
    return points


def extras(sweep: Sweep, table: Comparison, found: Outcome, pictures: dict[str, bytes]) -> Extras:
    """Return what the page of a sweep shows beside its table and curves."""
    counts = [f"{count} {what}" for what, count in found.counts().items() if count]
    which = "more" if sweep.mode == "max" else "less"
    facts = {"trials": ", ".join(counts), "objective": f"{sweep.metric} ({which} is better)"}
    linked = {}
    if found.best:
        record, summary = found.best
        reached = number(summary.metrics[sweep.metric])
        facts["best trial"] = f"{record.name} ({record.id[:8]}): {reached}"
        linked["best trial"] = record.id
    facts["command"] = sweep.command
    records = {r.id: r for r, _ in [*found.finished, *found.pruned, *found.others]}
    if sweep.store.database:
        facts["links"] = "lead to MLflow's UI, which waymark ui opens"
    others = [
        (record.id, record.name, status, record.tags.get(names.REASON, ""))
        for pairs, pruned in ((found.pruned, True), (found.others, False))
        for record, _ in pairs
        for status in ["PRUNED" if pruned else record.status]
    ]

    def link(run: str) -> str | None:
        # The address is the last word of what the store says of it.
        return sweep.store.link(records[run]).rpartition(" ")[2] if run in records else None

    varied = " x ".join(short_keys(table.keys).values()) or "seed"
    return Extras(f"Sweep: {varied}", facts, link, linked, others, pictures)
