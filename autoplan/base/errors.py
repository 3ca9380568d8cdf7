"""The errors that a user can correct. `__main__.main` turns each into one message on stderr and exit status 1."""

MAX_SHOWN = 60
"""Characters of a given word that a message shows at most."""


class AutoplanError(Exception):
    """What is wrong, where, and how to correct it."""


class DatasetError(AutoplanError):
    """The data: files, geometry, labels, intensities. May hold many lines, one for each fault."""


class PlanError(AutoplanError):
    """No admissible plan, or a request that the rules refuse."""


class TemplateError(AutoplanError):
    """The bundle to be written: a template that does not fit the plan, or a folder that holds another plan."""


class TrainingError(AutoplanError):
    """Trainings: what is asked for is not there, a job failed, or what runs the jobs went away."""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str) -> str:
    """The beginning of a text that is too long to be shown."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
