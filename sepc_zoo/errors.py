"""The base of the package's errors, and those that several modules raise."""


class UserError(Exception):
    """An error that the user can put right: the message names the entry and the way out.

    The command line prints the message without a traceback.
    """


class ConfigError(UserError, ValueError):
    """A configuration that builds no model; the message names the entry."""


class HubError(UserError, RuntimeError):
    """Weights that are missing, unreachable or do not fit; the message says what to do next."""
