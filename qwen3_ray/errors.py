"""Every error a user of Qwen3 Ray can meet.

    Qwen3RayError
    |-- ConfigError                a setting: field, value, what it must be
    |   |-- ResourcesError         too few CPUs or GPUs, a port in use, no Ray
    |   `-- CheckpointError        a file of the model directory: file, tensor, problem
    |-- RequestError               the request: the parameter and what is wrong with it
    |   |-- ModelNotFoundError
    |   `-- PromptTooLongError
    |-- OverloadedError            try again after `retry_after_s`
    |-- UnavailableError           no replica can answer now
    |-- DeadlineExceededError
    |-- RequestAbortedError        the request was cancelled
    `-- EngineError                the engine failed while it computed

The ingress maps a class to an HTTP and a gRPC status along its MRO (`cluster.ingress.statuses`).
"""


class Qwen3RayError(Exception):
    """Base of every error raised on purpose by this project."""


class ConfigError(Qwen3RayError):
    """A setting has a value that cannot work."""

    def __init__(self, field: str, value: object, requirement: str) -> None:
        super().__init__(f"{field} = {value!r}: {requirement}")
        self.field = field
        self.value = value
        self.requirement = requirement

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.field, self.value, self.requirement))


class ResourcesError(ConfigError):
    """The machine or the cluster lacks what the configuration needs."""


class CheckpointError(ConfigError):
    """A file of the model directory is missing, damaged or does not fit the architecture."""

    def __init__(self, file: object, problem: str, *, tensor: str | None = None) -> None:
        where = f"{file} (tensor {tensor})" if tensor else str(file)
        super().__init__("model", where, problem)
        self.file = str(file)
        self.tensor = tensor
        self.problem = problem

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_checkpoint_error, (self.file, self.problem, self.tensor))


def _rebuild_checkpoint_error(file: str, problem: str, tensor: str | None) -> CheckpointError:
    return CheckpointError(file, problem, tensor=tensor)


class RequestError(Qwen3RayError):
    """A request cannot be accepted as it is. `param` names the field, in the API's spelling."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message if param is None else f"{param}: {message}")
        self.param = param
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.param, self.message))


class ModelNotFoundError(RequestError):
    """The request names a model that is not served here."""


class PromptTooLongError(RequestError):
    """The prompt leaves no room for one output token in the context."""


class OverloadedError(Qwen3RayError):
    """No room for the request now; the client may try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(Qwen3RayError):
    """No replica can answer, or the one that was answering is gone."""


class DeadlineExceededError(Qwen3RayError):
    """The request's time ran out before its answer was complete."""


class RequestAbortedError(Qwen3RayError):
    """The request was cancelled before it finished."""


class EngineError(Qwen3RayError):
    """The engine failed while it computed; the message says what it was doing."""
