"""Nothing lost, nothing doubled, nobody apart: checked over the nodes' own RPC after a load."""

from collections import Counter

from node.rpc.client import Client


async def check(clients: list[Client], acknowledged: list[bytes]) -> dict[str, int]:
    """Compare what was acknowledged with every node's chain. Raises `RuntimeError`."""
    height = max([(await client.head()).height for client in clients])
    digests = set()
    for client in clients:
        await reach(client, height)
        block = await client.block(height)
        digests.add(None if block is None else block.header_digest)
    if len(digests) != 1:
        raise RuntimeError(f"nodes differ at height {height}")
    seen: Counter[bytes] = Counter()
    for number in range(1, height + 1):
        block = await clients[0].block(number)
        if block is None:
            raise RuntimeError(f"height {number} is missing")
        seen.update(r.transaction_id for r in block.receipts if r.code == "ok")
    lost = [each for each in acknowledged if seen[each] == 0]
    doubled = [each for each, count in seen.items() if count > 1]
    if lost or doubled:
        raise RuntimeError(f"{len(lost)} acknowledged transactions lost, {len(doubled)} doubled")
    return {"height": height, "executed": sum(seen.values()), "lost": 0, "doubled": 0}


async def reach(client: Client, height: int) -> None:
    """Return once the node has executed `height`."""
    async for block in client.events(from_height=max(1, height)):
        if block.height >= height:
            return
