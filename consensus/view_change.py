"""What a new view begins with, derived from a quorum of ViewChanges (OSDI §4.4).

Pure functions: the primary builds its NewView with them and every backup compares it with what the
same functions give. If d was committed at a height in any earlier view, a quorum holds a prepared
certificate for it; every quorum of ViewChanges meets that quorum in a correct member, and no
certificate of a later view names anything else: so `carried_over` returns d for that height.
"""

from collections.abc import Iterable, Sequence

from consensus.messages import NULL_DIGEST, PreparedCertificate, SealCertificate, ViewChange


def stable_certificate(view_changes: Iterable[ViewChange]) -> SealCertificate:
    """Return the highest stable certificate among all of `view_changes`: the paper's min-s."""
    return max((v.stable for v in view_changes), key=lambda certificate: certificate.height)


def carried_over(view_changes: Sequence[ViewChange]) -> list[tuple[int, bytes]]:
    """Return (height, digest) for each height above the stable one, ascending and without a gap.

    A height takes the digest of its prepared certificate of the highest view; a height without
    one becomes the null block. The order of `view_changes` does not matter.
    """
    stable = stable_certificate(view_changes).height
    best: dict[int, tuple[int, bytes]] = {}
    for view_change in view_changes:
        for certificate in view_change.prepared:
            vote = certificate.pre_prepare
            if vote.height > stable:
                claim = (vote.view, vote.digest)
                best[vote.height] = max(best.get(vote.height, claim), claim)
    heights = range(stable + 1, max(best, default=stable) + 1)
    return [(h, best[h][1] if h in best else NULL_DIGEST) for h in heights]


def view_to_join(views: Iterable[int], current: int, f: int) -> int | None:
    """Return the view above `current` that f+1 of `views` have reached, or None.

    `views` has one entry for each other validator. Of f+1 validators one is correct, so nothing
    that f of them claim moves a replica, and what is returned is a view that a correct one wants.
    """
    above = sorted((view for view in views if view > current), reverse=True)
    return above[f] if len(above) > f else None


def certificates_above(
    certificates: Iterable[PreparedCertificate | None], height: int
) -> tuple[PreparedCertificate, ...]:
    """Return the prepared certificates above `height`, in ascending order of height."""
    held = (c for c in certificates if c is not None and c.pre_prepare.height > height)
    return tuple(sorted(held, key=lambda certificate: certificate.pre_prepare.height))
