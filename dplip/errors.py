"""The library's errors: each says what was found (``name=value``), why it cannot be, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, for a sentence of ours."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class DPLipError(Exception):
    """Base class of every error that dplip raises on purpose."""


class ConfigurationError(DPLipError, ValueError):
    """An argument, a data set or a combination of options that no sound run can be made from."""


class MixedExamplesError(ConfigurationError):
    """The model makes one example's output depend on another example, on its place, or on how many there are."""


class UnboundedOperationError(DPLipError):
    """The model does something for which no bound is known, so nothing can be promised about it."""


class UnboundedInputError(DPLipError):
    """A layer's gradient grows with an input that nothing bounds."""


class BudgetExceededError(DPLipError):
    """The next step would spend more than the declared budget; it has not been run."""


class LedgerError(DPLipError):
    """The durable record of what was spent cannot be written, or what was read is not a valid record."""


class CheckpointError(DPLipError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


class GroupError(DPLipError):
    """The processes that train one model do not do the same, or one of them has failed or ended."""
