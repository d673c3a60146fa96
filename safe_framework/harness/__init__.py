"""Outside judges: the tasks of lm-evaluation-harness, asked of a model with its gate open.

``python -m safe_framework.harness --model safe --model_args adapter=... --tasks ...`` is the
harness's own command with two more models; ``safe-multimodal`` is for tasks with pictures. It needs
the extra ``harness``.
"""
