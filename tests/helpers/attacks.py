"""Pickles that would run code."""


class Call:
    """Calls a function with arguments when it is unpickled by ``pickle``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
