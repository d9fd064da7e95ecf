"""The part of detectron2's API that this project uses, in pure Python on maintained libraries.

Same public names, arguments and state-dict keys as detectron2 0.6. What is not provided raises an ImportError or
NotImplementedError that names it and says that the real detectron2 has it.
"""

__version__ = "0.6+bundled"
