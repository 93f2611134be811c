"""Which answers are kept, under what key, and how a kept one is told again: pure.

The noun is `extproc/answers.py`, stores are in `extproc/stores`, the flow in `extproc/pipeline.py`.
"""
