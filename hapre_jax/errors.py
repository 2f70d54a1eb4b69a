"""The one exception that programs show as a sentence instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend: names the thing, its value and what is accepted."""
