"""How each model of the miniature is trained: one file a model, and ``miniature.py``, the family and its order."""
