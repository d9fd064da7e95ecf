"""Exceptions whose message is all that a user needs: bad input, and a run that lost one of its processes."""


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one line: what was found, what was expected, and which key, flag or file to change. Tools print it
    on standard error and exit with 2; a library caller may catch it as ``ValueError``.
    """


class LostProcessError(RuntimeError):
    """Another process of a distributed run is gone, so this one cannot go on.

    The message is one line: which process, its step and phase, and how to continue. It has been printed on standard
    error at once, for the launcher may end this process any moment. Tools exit with 1.
    """


def reason_of(error: BaseException, most: int = 200) -> str:
    """What another's error says, as a part of one line: its text may quote the file that it is about at any length."""
    text = " ".join(str(error).split())
    return text[:most] + "…" * (len(text) > most) or type(error).__name__
