"""Training and validation as functions, for Python and for the commands."""
