"""The one exception type that means "the user can mend this"."""


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one line: what was found, what was expected, and which key, flag or file to change. Tools print it
    on standard error and exit with 2; a library caller may catch it as ``ValueError``.
    """
