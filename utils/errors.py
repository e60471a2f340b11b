"""Errors that a user can do something about.

Every message is one line that names the file or setting, what is wrong with it and what to do. Commands print it after
``error:``; anything else that is raised is a bug and keeps its traceback.
"""


class GasnetError(Exception):
    """Base of all errors that are reported to the user as one line."""


class SettingsError(GasnetError):
    """A setting is unknown, of the wrong type or out of range."""


class VolumeError(GasnetError):
    """A CT or a mask cannot be read, or does not fit what it belongs to."""


class CohortError(GasnetError):
    """A cohort folder or its splits are incomplete or contradict each other."""


class FolderError(GasnetError):
    """A folder is being written to by another process, or holds what would be written over."""


class CheckpointError(GasnetError):
    """A checkpoint is damaged, of another network, or of another format."""


class TrainingError(GasnetError):
    """Training cannot go on."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The text of an error as one line of at most `limit` characters; its type if it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
