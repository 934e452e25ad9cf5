"""Whether the other hospitals' exchanges answer."""

import asyncio

from node.exchange.transfer.holders import (
    Holder,
    HolderBusy,
    HolderFailed,
    HolderLied,
    HolderRefused,
    Identity,
    Link,
    NotHeld,
)
from node.exchange.transfer.limits import ClientLimits
from node.gateway.directory import Directory
from node.network.errors import CertificateRefused

AT_ONCE_MAX = 16
_LIMITS = ClientLimits(connect_timeout_ms=5_000, stall_timeout_ms=5_000)


async def unanswered(directory: Directory, identity: Identity) -> dict[str, str]:
    """Return the hospitals of the config whose exchange does not let us in, and why."""
    turns = asyncio.Semaphore(AT_ONCE_MAX)
    names = directory.placed
    reasons = await asyncio.gather(*(_why(directory, name, identity, turns) for name in names))
    return {name: why for name, why in zip(names, reasons, strict=True) if why}


async def _why(
    directory: Directory, name: str, identity: Identity, turns: asyncio.Semaphore
) -> str:
    holder = directory.holder(name)
    if holder is None:
        return "the ledger knows no node of it, or has suspended it"
    async with turns:
        return await _knock(holder, identity)


async def _knock(holder: Holder, identity: Identity) -> str:
    link = Link(holder, identity, _LIMITS)
    try:
        await link.knock()
    except HolderRefused as error:
        return f"it refuses: {error.code}"
    except (HolderBusy, NotHeld):
        return ""
    except (HolderFailed, HolderLied, CertificateRefused) as error:
        return str(error)
    finally:
        await link.close()
    return ""
