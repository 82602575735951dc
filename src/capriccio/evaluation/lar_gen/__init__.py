"""The benchmark of LAR-Gen (arXiv 2403.19534, section 6.1): a subject, a sentence, and a hole in a picture.

20 scenes with boxes, 10 subjects of which five are alive, 10 sentences: 2,000 samples. ``samples`` says what a sample
is and which ones a shorter run takes, ``photographs`` finds them in COCO and DreamBooth, ``miniature`` draws their
twins in the world, ``painters`` is the table of ways to paint, ``measures`` reads what was painted, ``runs`` paints
and keeps it, ``tables`` says how the ways compare, ``page`` shows all of it.
"""
