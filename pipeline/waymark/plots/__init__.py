"""Pictures, all in one style (`waymark.mplstyle`): of a run, of many runs, of examples.

Lines have the colours of Okabe and Ito's palette, surfaces those of viridis, or of one hue that
darkens: colour-blind people tell them apart. A file is drawn as its name ends: `.svg`, `.pdf`, else
PNG.

from pathlib import Path

from waymark.plots.curves import loss_curve

loss_curve(Path("loss.png"), losses={1: 2.3, 2: 1.9}, values={2: 0.4})
"""
