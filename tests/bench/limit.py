"""The machine's own limit: Ed25519 verifications per second with all cores."""

import multiprocessing
import os
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MESSAGE_BYTES = 236  # what the signature of a 300-byte transaction covers


def _verify_for(seconds: float, start: float, results: "multiprocessing.Queue[float]") -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    message = os.urandom(MESSAGE_BYTES)
    signature = private.sign(message)
    while time.perf_counter() < start:
        pass
    count = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        for _ in range(100):
            public.verify(signature, message)
        count += 100
    results.put(count / elapsed)


def verifications_per_second(seconds: float = 2.0) -> float:
    """Return the sum over one process per core, all running at once."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    start = time.perf_counter() + 1.5
    workers = [
        context.Process(target=_verify_for, args=(seconds, start, results))
        for _ in range(cores or 1)
    ]
    for worker in workers:
        worker.start()
    total = sum(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total
