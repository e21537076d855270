"""Check what was exported against the dense network: accuracy at every hop, paired latency, gates, verdict.

`check.json`, beside `checked.json`-able `Checked`, holds (the keys of report.json, filled as far as this stage knows them):

    schema            1
    environment       runtime.device.environment(): fingerprint, cpu, cores, memory_gib, gpus, os, python, versions
    models.{dense,compact}
        params        int, all parameters
        macs          int, multiply-accumulates of one image (batch 1)
        bytes         int, the simplified fp32 ONNX file: what is deployed
        files         {"onnx" | "simplified" | "fp16" | "<engine>": bytes of the file}
        accuracy      {"torch" | "onnx" | "simplified" | "fp16" | "<engine>": fraction of the test split, or null}
        reasons       {"<key of accuracy that is null>": why}
    accuracy_difference   dense against compact, torch, same images: {n, only_first, only_second, difference_pp, ci95_pp: [lo, hi],
                          p_value, method}; difference_pp = compact - dense, in percentage points
    hops[]            {model: "dense"|"compact", from, to, max_abs, max_rel, top1_agreement, accuracy_delta, reason}
    latency.<backend>.<precision>.b<batch>
        dense, compact  {name, p50_ms, p95_ms, mean_ms, best_ms, n, samples_ms: at most 2,000, thinned}
        speedup         {ratio: dense p50 / compact p50, ci95: [lo, hi], verdict: "faster"|"not distinguishable"|"slower"}
        settings, protocol   how it was measured
        reason          null, or why dense, compact and speedup are null
    engines[]         {model, flavour, precision, target, path, sha256, bytes, measured_on: device name or null, reason}
    verdict           {status: "pass"|"fail"|"inconclusive", gates[]: {name, status, value, limit, reason}}

`<engine>` is `<flavour>.<precision>.<target>`, e.g. `tensorrt_rtx.fp16.SM86`; `<backend>` is `onnxruntime`, `torch`, `tensorrt` or
`tensorrt_rtx`. A figure that was not measured is null beside its reason.
"""
