"""Which widths a backend's fast kernels take, layer by layer.

ONNX Runtime on a CPU (1.32, x86): a convolution takes the blocked kernels where the number of channels that it reads is
a multiple of 4; the channels that it makes are filled up to the block of 8 or 16 by the kernels themselves, and cost as
much. Products of matrices take any width. Seen in the operators of graphs that it optimised.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.groups import groups_of
from pipeline.surgery.channels.labels import Labels

READ_BY_CONVOLUTIONS = 4


def onnxruntime_multiples(analysis: Analysis) -> dict[str, int]:
    """Group (or sum of an untied stream) -> the multiple that its readers ask for; 1 where no convolution reads it."""
    classes = analysis.ledger.classes()
    read = np.zeros(int(classes.max(initial=-1)) + 1, bool)
    for layer in analysis.layers:
        source = layer.node.args[0] if layer.node.args else None
        labels = analysis.env.get(source) if isinstance(source, fx.Node) else None
        if analysis.tensor(layer.weight).dim() > 2 and isinstance(labels, Labels):
            for field in labels.fields:
                if field.axes == (1,):
                    read[classes[field.ids]] = True
    widths = [(group.name, group.classes) for group in groups_of(analysis, classes)]
    widths += [(name, classes[ids]) for name, ids in analysis.streams.items()]
    return {name: READ_BY_CONVOLUTIONS if read[mine].any() else 1 for name, mine in widths}
