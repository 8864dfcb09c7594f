"""Mistakes that a user can make and repair; anything else is a bug and keeps its traceback."""


class JdmError(Exception):
    """One sentence on what is wrong, where, and what was found; `hint` is what to type next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def first_line(problem: BaseException) -> str:
    """Of what a library says of an error; of one that says nothing, what it is."""
    return (str(problem).strip() or repr(problem)).splitlines()[0]


class RecipeError(JdmError):
    """A recipe that cannot be read, or whose values cannot be used."""


class MissingWeightsError(JdmError):
    """Weights that are absent, truncated, or of another class than expected."""


class ConditionMismatchError(JdmError):
    """A condition whose name, size or channels the control branch does not take."""


class NonFiniteLossError(JdmError):
    """A loss that became infinite or not a number."""


class BadInputError(JdmError):
    """A picture, data set or model folder that cannot be used as it is."""


class RunInterrupted(JdmError):
    """Ctrl-C or a termination request; the state was saved and the hint says how to go on."""

    exit_code = 130
