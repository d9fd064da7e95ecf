"""Lets ``segmentation.py`` of this folder import the package ``segmentation``: import this before anything else.

Python searches a script's own folder first, where that name is the script. From here on the folder comes last.
"""

import sys

sys.path.append(sys.path.pop(0))
