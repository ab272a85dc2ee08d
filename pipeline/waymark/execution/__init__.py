"""One run, from its plan to its recorded end.

from waymark.config.compose import compose_config
from waymark.execution.execute import resume, run

result = run(compose_config(["steps=20", "progress=false"]))
resume(result.run_id, {"steps": 40})
"""
