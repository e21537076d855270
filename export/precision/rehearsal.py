"""Whether a graph can be had in a lower precision at all, asked with few random images before hours of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.onnx import graph
from export.onnx.rounded import rounded
from export.precision.counts import Precision, demand_layers
from export.precision.half import Half, to_half
from export.precision.int8 import Calibration, layers_of, quantise, ranges_of
from runtime.errors import UserError

IMAGES = 4


def demand_lower(
    source: Path, name: str, shape: Sequence[int], precisions: Sequence[Precision], calibration: Calibration
) -> None:
    """UserError where the graph of the network `name`, of images `shape` (C, H, W), cannot be written in one of the
    precisions or does not run so."""
    model = graph.read_graph(source)
    graph.name_nodes(model)
    images = np.random.default_rng(0).standard_normal((IMAGES, *shape)).astype(np.float32)
    if calibration.method == "entropy":  # takes a minute where a percentile of the same histograms takes a second
        calibration = replace(calibration, method="percentile")
    for precision in precisions:
        try:
            if precision == "int8" and layers_of(model):
                low = quantise(model, ranges_of(source, [images], calibration), (), source, calibration)
            elif precision == "int8":
                low = model
            else:
                half: Half = precision
                low = to_half(model, half, frozenset(), source)
            demand_layers(low, precision, source)
            runnable = low if precision == "int8" else rounded(low)
            graph.run_graph(graph.open_graph(runnable), graph.rows(images, graph.fixed_batch(runnable) or IMAGES))
        except (graph.GraphError, UserError) as error:
            problem = error.found if isinstance(error, UserError) else graph.first_line(error)
            raise UserError(
                f"{name} cannot be computed in {precision}: {problem.replace(str(source), 'its graph')}",
                "operators that can",
                f"leave {precision} out of precision.graphs, or replace the operator",
            ) from error
