"""Does a method do what it says: held-out subjects, readings of pictures, intervals over subjects.

``cases`` draws the subjects and scenes no model has seen, ``variants`` paints them in several ways, ``metrics`` reads
what was painted, ``judge`` puts the readings together, ``statistics`` says how sure we may be, ``targets`` measures the
miniature itself, ``reports`` prints and saves, and ``demo`` shows the main job on one sheet.
"""
