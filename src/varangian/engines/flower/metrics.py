"""Metrics that nodes report, combined so that up to f of them can say what they like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import MetricRecord, RecordDict

from ...core.rules import Median


def median_metrics(contents: Sequence[RecordDict], f: int, leave_out: str) -> MetricRecord:
    """The median over nodes of each metric that at least 2f + 1 of them report with finite numbers."""
    reported: dict[str, dict[tuple[int, ...], list[np.ndarray]]] = {}
    for content in contents:
        records = list(content.metric_records.values())
        for key, value in records[0].items() if len(records) == 1 else ():
            try:
                numbers = np.asarray(value, dtype=np.float64)
            except OverflowError:
                continue
            if key != leave_out and numbers.size and np.isfinite(numbers).all():
                reported.setdefault(key, {}).setdefault(numbers.shape, []).append(numbers)
    metrics = MetricRecord()
    for key, shapes in sorted(reported.items()):
        shape, values = max(shapes.items(), key=lambda item: (len(item[1]), item[0]))
        if len(values) >= 2 * f + 1:
            median = Median(f=f)(np.stack(values).reshape(len(values), -1))
            metrics[key] = median.tolist() if shape else float(median[0])
    return metrics
