"""``metrics.csv``: every number that is logged, one row per step, readable while the run goes on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

FILE = "metrics.csv"


class TableLogger(Logger):
    """Appends rows to a CSV; a new metric rewrites the header; rows after a resumed step are dropped.

    ``clock`` tells our own step: Lightning's counts every optimiser's.
    """

    def __init__(self, folder: Path, clock: Callable[[], int]) -> None:
        super().__init__()
        self.path, self.clock = folder / FILE, clock
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                self._columns = list(reader.fieldnames or ["step"])
                self._rows = list(reader)

    @property
    def name(self) -> str:
        """Name for Lightning."""
        return "table"

    @property
    def version(self) -> str:
        """Version for Lightning."""
        return ""

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop rows beyond the step from which the run goes on: they will come again."""
        self._rows = [row for row in self._rows if int(row["step"]) <= step]
        self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of ``step`` (the last row, or a new one)."""
        values = {k: f"{float(v):.7g}" for k, v in metrics.items() if k not in ("epoch", "step")}
        number = str(self.clock())
        new = [k for k in values if k not in self._columns]
        self._columns += new
        same = bool(self._rows) and self._rows[-1]["step"] == number
        if same:
            self._rows[-1].update(values)
        else:
            self._rows.append({"step": number, **values})
        if new or same or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns).writerow(self._rows[-1])

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.json holds them."""

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".csv.partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        partial.replace(self.path)
