"""Keeps what libraries say about data sets out of the logs: they quote values and UIDs."""

import logging
import sys
import threading
import warnings

import pynetdicom

log = logging.getLogger(__name__)

# From information on, pynetdicom logs every identifier that is asked for; both quote values in
# warnings and errors.
_TALKATIVE = ("pynetdicom", "pydicom")


def silence_libraries() -> None:
    """Let the DICOM libraries log nothing. What they find is told by who calls them."""
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def log_to_stderr(level: int) -> None:
    """Log to standard error, without what libraries quote. To be called once in a process."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    silence_libraries()
    warnings.simplefilter("ignore")
    threading.excepthook = lambda failed: log.error(
        "thread ended error=%s", getattr(failed.exc_type, "__name__", "unknown")
    )
