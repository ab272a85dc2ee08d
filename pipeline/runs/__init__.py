"""One run, from its plan to its recorded end.

from pipeline.compose import composed
from pipeline.runs.execute import resume, run

result = run(composed(["steps=200", "progress=false"]))
resume(result.run_id, {"steps": 400})
"""
