"""Pictures, all in one style (`waymark.mplstyle`): of a run, of many runs, of examples.

Lines have the colours of Okabe and Ito's palette, surfaces those of viridis, or of one hue that
darkens: colour-blind people tell them apart. A file is drawn as its name ends: `.svg`, `.pdf`, else
PNG.
"""
