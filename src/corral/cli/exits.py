"""How a command ends: the exit codes, which scripts may rely on, and the errors that only the CLI has."""

from corral.errors import CorralError, InvalidRequest, ModelNotFound

OK, FAILED, USAGE, NOT_FOUND, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES = """\
exit codes:
  0  done
  1  failed
  2  wrong usage
  3  no such model
  4  no server answers
  130  interrupted"""


class UsageError(CorralError):
    """The command line or a setting is wrong; the message says how it is right."""


class NoServer(CorralError):
    """No server answers at the address that OLLAMA_HOST names."""

    def __init__(self, address: str):
        super().__init__(f"no server answers at {address}. Start one with `corral serve`, or set OLLAMA_HOST")


class ApiError(CorralError):
    """The server answered with an error; the message is the server's own, `status` its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def exit_code(error: CorralError) -> int:
    """The exit code of a command that ends with `error`."""
    if isinstance(error, ModelNotFound) or (isinstance(error, ApiError) and error.status == 404):
        return NOT_FOUND
    if isinstance(error, NoServer):
        return NO_SERVER
    refused = isinstance(error, ApiError) and error.status == 400
    return USAGE if refused or isinstance(error, UsageError | InvalidRequest) else FAILED
