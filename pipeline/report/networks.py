"""Sections on the networks themselves: gates, channels, the certificate of the cut, graphs, engines, where and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.report.collect import CHECK, ENGINE, PRECISION, SIMPLIFY, SURGERY
from pipeline.report.document import Candidate, Engine, EngineProof, GraphFile, Report
from pipeline.report.page import Block, Cell, Rows, Section, Table, Text, numbers

NOT_RUN = f"Not run: stage {SURGERY}."
Facts = list[tuple[str, str]]


def gates(report: Report) -> Section:
    if not report.verdict.gates:
        text = f"Not run: stage {CHECK}. Nothing was judged, so the verdict is inconclusive."
        return Section("Gates", [Text(text, "absent")], brief=True)
    rows: Rows = [
        [
            gate.name,
            Cell(gate.status, kind=gate.status),
            numbers.plain(gate.value),
            numbers.plain(gate.limit) if gate.limit is not None else "",
            Cell(gate.reason, kind="wide"),
        ]
        for gate in report.verdict.gates
    ]
    table = Table(("Gate", "Status", "Value", "Limit", "Reason"), rows, (2, 3))
    return Section("Gates", [Text(f"{CHECK}/check.json", "source"), table], brief=True)


def channels(report: Report) -> Section:
    layers = report.surgery.layers
    if not layers:
        return Section("Channels", [Text(NOT_RUN, "absent")])
    widest = max(layer.before for layer in layers)
    rows: Rows = [
        [
            layer.layer,
            str(layer.before),
            str(layer.dead),
            str(layer.after),
            Cell(
                "",
                bars=(
                    ("is-compact", (layer.before - layer.dead) / widest),
                    ("is-held", (layer.after - layer.before + layer.dead) / widest),
                    ("is-cut", (layer.before - layer.after) / widest),
                ),
            ),
        ]
        for layer in layers
    ]
    key = "Full: alive. Pale: dead, stays for alignment. Outline: cut out."
    table = Table(("Layer", "Before", "Dead", "After", "Channels"), rows, (1, 2, 3))
    return Section("Channels", [Text(f"{SURGERY}/certificate.json. {key}", "source"), table])


def certificate(report: Report) -> Section:
    title = "Certificate of the cut"
    facts = certified(report)
    if not facts:
        return Section(title, [Text(NOT_RUN, "absent")])
    blocks: list[Block] = [Text(f"{SURGERY}/certificate.json, {SURGERY}/stage.json", "source"), Table((), facts)]
    cut = report.surgery
    if cut.alignment and cut.alignment.backend:
        tried = cut.alignment
        text = f"Alignments tried: {tried.backend} on {tried.device}, {tried.threads} threads, batch {tried.batch}."
        rows = [[c.align, str(c.channels), _rounds(c), "chosen" if c.chosen else ""] for c in tried.candidates]
        table = Table(("Multiple of", "Channels", "p50 (rounds)", "Chosen"), rows, (1, 2))
        blocks += [Text(text, "source"), table]
    if cut.frozen:
        frozen: Rows = [[f.where, str(f.channels), Cell(f.reason, kind="wide")] for f in cut.frozen]
        summary = f"Where channels could not be cut, and why ({len(frozen)})"
        blocks.append(Table(("Where", "Channels", "Why"), frozen, (1,), summary))
    return Section(title, blocks)


def certified(report: Report) -> Facts:
    """What the cut proved, as rows; [] where it was not made. Removals during training count: each held the same law
    against the network just before it."""
    cut, facts = report.surgery, Facts()
    if cut.channels_before is None:
        return facts
    if cut.law is None:
        facts.append(("Law in float64", f"not checked: {cut.reasons['law']}"))
    else:
        held = ", channels measured dead held at zero in both" if cut.law.held else ""
        facts += [
            ("Law in float64", f"compact computes what the trained network computes{held}{in_single(cut.law.single)}"),
            ("Largest relative difference", f"{numbers.small(largest(report))}, allowed {cut.law.tolerance:g}"),
            ("Checked on", "; ".join(cut.law.inputs)),
        ]
    facts.append(("Largest difference in float32", numbers.small(cut.max_abs_diff)))
    if cut.removed_in_training:
        most = f", no cut changed more than {numbers.small(cut.removal_rel_diff)}"
        removed = f"{numbers.count(cut.removed_in_training)}{most if cut.removal_rel_diff is not None else ''}"
        facts.append(("Removed during training, dead in a census", removed))
    if cut.evidence:
        after = " after training" if cut.removed_in_training else ""
        facts.append((f"Removed{after} by proof from the weights", numbers.count(cut.evidence.by_proof)))
        facts.append((f"Removed{after} by measurement", numbers.count(cut.evidence.by_measurement)))
    if cut.confirmation:
        again, most_active = cut.confirmation, max(cut.confirmation.largest_activation.values(), default=0.0)
        revived = f"{again.images:,} training images; {again.revived} channels of the last census were alive on them"
        facts.append(("Deaths confirmed on", revived))
        if again.approximate:
            names = ", ".join(again.approximate)
            facts.append(("Approximate", f"{names}: dead channels reach {numbers.small(most_active)} there, not 0"))
    for split, moved in (("test", cut.change.test), ("training", cut.change.train)) if cut.change else ():
        if moved is not None:
            change = f"{numbers.small(moved.max_abs)} at most"
            change += f", {moved.top1_changed} answers changed" if report.metric_name == "accuracy" else ""
            facts.append((f"Outputs against the trained network, {moved.images:,} {split} images", change))
    facts.append(("Layers whose bias took up constants", numbers.count(len(cut.folded))))
    return facts


def largest(report: Report) -> float | None:
    """Of the law's relative differences: of the last cut, and of every removal during training."""
    cut = report.surgery
    figures = (cut.law.max_rel_diff if cut.law else None, cut.removal_rel_diff)
    return max((figure for figure in figures if figure is not None), default=None)


def in_single(operators: Sequence[str]) -> str:
    """Operators that take no float64, which the law therefore ran in float32."""
    return f" but for {', '.join(operators)}, in float32" if operators else ""


def _rounds(row: Candidate) -> str:
    """`0.92 ms (0.90 to 0.95)`."""
    low, high = row.p50_ms_low, row.p50_ms_high
    measured = low is not None and high is not None
    return numbers.milliseconds(row.p50_ms) + (f" {numbers.between(low or 0.0, high or 0.0)}" if measured else "")


def graphs(report: Report) -> Section:
    rows = [_graph(graph) for graph in report.graphs]
    heads = ("Network", "Precision", "Made or proven by", "Operator set", "Nodes", "Drop, points", "In fp32")
    source = f"{SIMPLIFY}/stage.json, {PRECISION}/stage.json. A drop is against the graph's own fp32 form."
    blocks: list[Block] = [Text(source, "source"), Table(heads, rows, (3, 4, 5))]
    for graph in report.graphs:
        for tool, reason in graph.refused.items():
            blocks.append(Text(f"{graph.model}: not {tool}: {reason}.", "absent"))
    if (best := report.best) is not None:
        place = f"on {best.backend}, {best.device}, batch {best.batch}"
        blocks.append(Text(f"Fastest of those that hold, {place}: {best.precision}."))
    return Section("Graphs", blocks, brief=True)


def _graph(graph: GraphFile) -> list[Cell | str]:
    before = f"{graph.nodes_before} to " if graph.nodes_before is not None else ""
    drop = f"{graph.drop_pp:.2f}" if graph.drop_pp is not None else ""
    return [
        graph.model,
        graph.precision,
        Cell(graph.made_by, kind="wide"),
        str(graph.opset or ""),
        f"{before}{graph.nodes}",
        drop + (" (too many)" if graph.holds is False else ""),
        Cell(", ".join(layer.layer for layer in graph.in_fp32), kind="wide"),
    ]


def engines(report: Report) -> Section:
    if not report.engines:
        done = any(stage.folder == ENGINE and stage.status == "done" for stage in report.stages)
        text = "No engine was asked for." if done else f"Not run: stage {ENGINE}."
        return Section("Engines", [Text(text, "absent")], brief=True)
    alike = _one_reason(report)
    source = f"{CHECK}/check.json." if report.verdict.gates else f"{ENGINE}/stage.json."
    blocks: list[Block] = [Text(source, "source"), *([Text(alike)] if alike else [])]
    heads = ("Network", "Flavour", "Precision", "Target", "Computes in", "Size", "SHA-256", "Measured on")
    rows: Rows = [
        [
            engine.model,
            engine.flavour or "",
            engine.precision,
            engine.target,
            Cell(proven(engine.proof), kind="wide"),
            numbers.binary(engine.bytes) if engine.bytes is not None else "",
            Cell((engine.sha256 or "")[:12], kind="code"),
            Cell(_measured(engine), kind="wide"),
        ]
        for engine in report.engines
    ]
    columns = 7 if alike else 8
    table = Table(heads[:columns], [row[:columns] for row in rows], (5,))
    return Section("Engines", [*blocks, table], brief=True)


def _one_reason(report: Report) -> str | None:
    """What holds for all engines, where none was measured for one reason; None where they differ."""
    reasons = {engine.reason for engine in report.engines}
    if len(reasons) != 1 or any(engine.measured_on or not engine.path for engine in report.engines):
        return None
    return f"None was run here: {reasons.pop()}."


def _measured(engine: Engine) -> str:
    return engine.measured_on or f"{'not measured' if engine.path else 'not built'}: {engine.reason}"


def proven(proof: EngineProof | None) -> str:
    """`54 fp16; 2 casts; from the network`."""
    if proof is None:
        return ""
    products = ", ".join(f"{count} {kind}" for kind, count in proof.products.items())
    share = f" ({numbers.percent(proof.share, 1)} of the work)" if proof.share < 1 else ""
    counted = {"casts": proof.casts, "quantisations": proof.quantizes, "reformats": proof.reformats}
    if proof.source == "network":
        del counted["reformats"]  # the builder adds those later
    others = [f"{count} {name}" for name, count in counted.items() if count]
    unknown = [f"{proof.unknown} of unknown type"] if proof.unknown else []
    return "; ".join([f"{products}{share}", *unknown, *others, f"from the {proof.source}"])


def place(report: Report) -> Section:
    heads = ("Stage", "Time", "Device", "Seed", "Repeats this stage alone")
    rows: Rows = [
        [
            stage.folder,
            numbers.seconds(stage.seconds),
            stage.device or "",
            "" if stage.seed is None else str(stage.seed),
            Cell(stage.command or "", kind="wide code"),
        ]
        if stage.status == "done"
        else [stage.folder, Cell("not run", kind="absent"), "", "", ""]
        for stage in report.stages
    ]
    return Section("Where and how", [Table((), list(machine(report.environment))), Table(heads, rows, (1, 3))])


def machine(environment: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What is nested or a list is joined."""
    for key, value in environment.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{name} {one}" for name, one in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        yield key.replace("_", " "), text or "none"


WORDS = (
    ("dense", "The network as it was given or trained, with every channel: what compact is measured against."),
    ("sparse training", "The training in which channels die, that is, come to be 0 or constant on every image."),
    ("compact", "The network that is left when the dead channels are cut out. It computes the same function."),
    ("channel", "One output of a layer: a feature map of a convolution, a neuron of a linear layer."),
    ("alignment", "Channels that stay although they are dead, because a device runs multiples of 8 or 16 faster."),
    ("MACs", "Multiply-accumulates: the products and sums that one image takes. A measure of work, not of time."),
    ("law", "What surgery proves: compact(x) equals the trained network's answer on every input that was tried."),
    ("form, hop", "A form is one way to run a network: torch, ONNX, simplified, fp16, an engine. A hop leads from one "
                  "form to the next."),
    ("p50, p95, p99", "Half, 95 % or 99 % of the launches took at most so long."),
    ("batch", "Images that are computed in one launch."),
    ("ratio, speedup", "Dense p50 over compact p50, timed in turn: 2.00x means half the time; below 1 is slower."),
    ("95 % interval", "Where the figure lies in 95 of 100 such measurements. Where that of a ratio holds 1, no "
                      "difference was found."),
    ("percentage point", "The unit of a difference of two accuracies: from 99 % to 98 % is one point lost."),
    ("gate", "A figure against its limit from the config. One that fails, or cannot be decided, decides the verdict."),
    ("lambda, sigma", "Strength of the pressure on channels, and of the noise on living ones, in DemP."),
    ("engine", "A network that TensorRT compiled for one kind of GPU."),
)  # fmt: skip


def words(report: Report) -> Section:
    other = {"compact": "The smaller network, as it was given.", "law": None}
    rows = [(word, other.get(word, text) if report.pair else text) for word, text in WORDS]
    return Section("Words", [Table((), [(word, text) for word, text in rows if text])])
