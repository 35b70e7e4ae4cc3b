"""What a user can mend: a wrong file, value or command."""


class UserError(ValueError):
    """Says in one line what is wrong, what was expected and what to do; commands print it without a trace."""
