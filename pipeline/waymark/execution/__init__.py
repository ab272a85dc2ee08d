"""One run, from its plan to its recorded end.

from waymark.config.compose import composed
from waymark.execution.execute import resume, run

result = run(composed(["steps=200", "progress=false"]))
resume(result.run_id, {"steps": 400})
"""
