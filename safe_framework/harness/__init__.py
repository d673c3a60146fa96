"""Outside judges: the tasks of lm-evaluation-harness, asked of a model with its gate open.

``python -m safe_framework.harness --model safe --model_args adapter=... --tasks ...`` is the
harness's own command with one more model. It needs the extra ``harness``.
"""
