"""The base of our errors."""


class UserError(Exception):
    """What a user can put right: the message names the entry and the way out.

    The command line answers with the message and no traceback.
    """
