"""What can be expected to fail in any room, as an exit status and sentences for a person."""

from node.cli.advice import lines_about
from node.cli.failures import UNABLE, USAGE, WRONG, Failure
from node.config import ConfigError
from node.gateway.audit.errors import EvidenceInvalid, PeriodInvalid, TrailBroken, TrailUnusable
from node.imaging.errors import VaultError, WrongPassphrase
from node.keys import KeyFileError
from node.ledger.errors import InvalidGenesis, Refused
from node.provision import InvalidCard
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from storage.errors import StorageError


def meaning_of(error: Exception) -> tuple[int, list[str]] | None:
    """Return the exit status and sentences for what can be expected to fail, None for a bug."""
    match error:
        case Failure():
            return error.status, list(error.lines)
        case InvalidGenesis():
            return USAGE, ["the genesis cannot be used:", *error.problems]
        case ConfigError():
            return USAGE, ["the config cannot be used:", *str(error).splitlines()]
        case TrailBroken():
            return WRONG, [str(error)]
        case EvidenceInvalid() | PeriodInvalid():
            return USAGE, [str(error)]
        case KeyFileError() | InvalidCard() | WrongPassphrase():
            return USAGE, [_sentence(error)]
        case NotAuthorized():
            return USAGE, [f"{error}: is rpc.token_file the token of the node that runs there?"]
        case Refused():
            return WRONG, lines_about(error.code, error.sentence)
        case RpcError(code="invalid_params" | "method_not_found"):
            return USAGE, [str(error)]
        case ConnectionLost():
            return UNABLE, [f"{error}: does the node run? `radledger start` runs it"]
        case NotAnAnswer():
            return UNABLE, [f"the node answers in another form than this program knows: {error}"]
        case TimeoutError() if not str(error):
            return UNABLE, ["it took too long"]
        case RpcError() | VaultError() | StorageError() | TrailUnusable() | OSError():
            return UNABLE, [_sentence(error)]
        case ExceptionGroup():
            return _meaning_of_group(error)
    return None


def _meaning_of_group(group: ExceptionGroup[Exception]) -> tuple[int, list[str]] | None:
    meanings = [meaning_of(error) for error in group.exceptions]
    known = [meaning for meaning in meanings if meaning is not None]
    if len(known) < len(meanings):
        return None
    lines = dict.fromkeys(line for _, lines in known for line in lines)
    return max(status for status, _ in known), list(lines)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
