"""The one base class of errors that tell a user what is wrong and what to do; all else is a bug and shows its trace."""

from tfds_builders.errors import MissingFile, UserError, show

__all__ = ["MissingFile", "UserError", "show"]
