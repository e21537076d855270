"""report.json, report.md and report.html of a run; `pipeline.report.render.render(run)` writes them."""
