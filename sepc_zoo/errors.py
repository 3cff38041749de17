"""The base of our errors, and the one that several modules raise."""


class UserError(Exception):
    """What a user can put right: the message names the entry and the way out.

    The command line answers with the message and no traceback.
    """


class HubError(UserError, RuntimeError):
    """Weights that cannot be had or do not fit; the message says what to do next."""
