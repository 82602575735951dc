"""How LAR-Gen is trained.

``stages`` says what the two stages are. ``miniature`` teaches the miniature from its gallery; ``recipe``, ``shards``
and ``training`` teach any Stable Diffusion of the 1.5 class from collected pictures.
"""
